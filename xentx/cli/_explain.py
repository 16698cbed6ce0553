"""``xentx explain``: calls `explain` with the options, and renders the result."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from xentx.cli import _output
from xentx.cli._console import console
from xentx.cli._quiet import quiet
from xentx.explain import Explanation, explain, markdown

N = TypeVar("N", int, float)


def run(
    *,
    logits: Sequence[str],
    target: Sequence[str],
    dtype: str,
    frameworks: Sequence[str],
    full: bool,
    as_markdown: bool,
    notebook: Path | None,
) -> None:
    """Run the command."""
    if notebook is not None:
        _output.check("--notebook", notebook)
    explanation = _explanation(_rows(logits), _classes(target), dtype, frameworks)
    if notebook is not None:
        _write(explanation, notebook)
    if as_markdown:
        sys.stdout.write(markdown(explanation))
    elif notebook is None:
        from xentx.explain import _terminal  # noqa: PLC0415 -- only this output needs tables

        render = _terminal.render if full else _terminal.summary
        console().print(render(explanation))


def _explanation(
    rows: list[list[float]], classes: list[int], dtype: str, frameworks: Sequence[str]
) -> Explanation:
    try:
        with quiet():
            return explain(rows, classes, dtype=dtype, frameworks=frameworks)
    except (ValueError, IndexError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error


def _write(explanation: Explanation, path: Path) -> None:
    try:
        from xentx.explain._notebook import write  # noqa: PLC0415 -- may not be installed

        with _output.written("--notebook", path):
            write(explanation, path)
    except ImportError as error:
        msg = f"--notebook: {error}: pip install nbformat"
        raise typer.BadParameter(msg) from error
    typer.echo(f"wrote {path}", err=True)


def _rows(texts: Sequence[str]) -> list[list[float]]:
    """Parse rows from options that are repeated, or separated by semicolons."""
    return [
        [_number(entry, "logits", float, "a number") for entry in row.split(",")]
        for text in texts
        for row in text.strip().strip(";").split(";")
    ]


def _classes(texts: Sequence[str]) -> list[int]:
    return [
        _number(entry, "target", int, "a class index")
        for text in texts
        for entry in text.strip().strip(";").replace(",", ";").split(";")
    ]


def _number(text: str, name: str, kind: Callable[[str], N], wanted: str) -> N:
    try:
        return kind(text)
    except ValueError:
        msg = f"--{name}: got {text.strip()!r}; expected {wanted}"
        raise typer.BadParameter(msg) from None
