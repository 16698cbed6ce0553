"""The file that a command writes: looked at before the work, and what went wrong in words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from xentx.compare.files import reason


def check(option: str, path: Path) -> None:
    """Refuse a file that can't be written, before there is anything to lose.

    Raises
    ------
    typer.BadParameter
        If the file's folder is missing or can't be written to, or the path is a folder.
    """
    folder = path.absolute().parent
    problems = (
        (not folder.is_dir(), f"there is no folder {path.parent}"),
        (path.is_dir(), f"{path} is a folder; expected a file"),
        (not os.access(folder, os.W_OK), f"{path}: permission denied"),
    )
    for wrong, text in problems:
        if wrong:
            msg = f"{option}: {text}"
            raise typer.BadParameter(msg)


@contextmanager
def written(option: str, path: Path) -> Iterator[None]:
    """Say in words why a file could not be written after all."""
    try:
        yield
    except OSError as error:
        msg = f"{option}: {path}: {reason(error)}"
        raise typer.BadParameter(msg) from error
