"""The console for tables."""

import sys

from rich.console import Console

_PIPE_WIDTH = 140


def console() -> Console:
    """Return a console on standard output. In a pipe it is wide enough for all tables."""
    return Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False
    )
