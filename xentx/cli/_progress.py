"""The progress bar of the commands that take long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress(stderr: TextIO) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on a terminal, and nothing in a pipe."""
    if not stderr.isatty():  # where even a disabled bar of an older rich leaves an empty line
        yield lambda *_: None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(file=stderr), transient=True) as bar:
        task = bar.add_task("starting")

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield step
