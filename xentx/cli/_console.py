"""Where tables are printed."""

import sys

from rich.console import Console

_PIPE_WIDTH = 140


def console() -> Console:
    """Return standard output: as wide as the terminal, and wide enough for the tables in a pipe."""
    return Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False
    )
