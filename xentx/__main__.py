"""``python -m xentx``: the command ``xentx``."""

from xentx.cli import main

main()
