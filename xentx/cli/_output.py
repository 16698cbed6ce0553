"""Checks of an output file before the work, and error messages for writing it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from xentx.compare.files import reason


def check(option: str, path: Path) -> None:
    """Raise an error if a file cannot be written, before the work begins.

    Raises
    ------
    typer.BadParameter
        If the file's folder is missing or not writable, or the path is a folder.
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
    """Convert errors of writing a file to messages of the command."""
    try:
        yield
    except OSError as error:
        msg = f"{option}: {path}: {reason(error)}"
        raise typer.BadParameter(msg) from error
