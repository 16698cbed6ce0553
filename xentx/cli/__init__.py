"""The command ``xentx``."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command. If a library is missing, print how to install it."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        needs = " and ".join(missing)
        sys.exit(f"The xentx command needs {needs}: pip install 'xentx[cli]'")
    from xentx.cli._app import app  # noqa: PLC0415 -- imports optional libraries

    app()
