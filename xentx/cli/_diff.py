"""``xentx diff``: calls `diff`, and prints the result as tables or JSON."""

import sys
from typing import TYPE_CHECKING, Any, cast

import typer

from xentx.cli._console import console
from xentx.cli._progress import progress
from xentx.cli._quiet import quiet
from xentx.compare import _json
from xentx.diff import CallError, diff

if TYPE_CHECKING:
    from xentx.natives.vocabulary import Target


def run(*, a: str, b: str, target: str | None, corners: bool, as_json: bool) -> None:
    """Run the command."""
    try:
        with quiet() as stderr, progress(stderr) as step:
            found = diff(a, b, target=cast("Target | None", target), corners=corners, progress=step)
    except CallError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        # The encoding of reports, with infinities.
        sys.stdout.write(_json.dumps(cast("Any", found)) + "\n")
    else:
        from xentx.diff import _terminal  # noqa: PLC0415 -- JSON needs no tables

        console().print(_terminal.render(found))
