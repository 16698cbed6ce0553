"""``python -m xentx``: the command ``xentx``."""

from xentx.cli import main

if __name__ == "__main__":
    main()
