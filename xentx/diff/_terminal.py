"""A comparison of two calls, for a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from xentx.compare.report import Nested, Outcome
from xentx.diff._comparison import Comparison, CornerDifference, Suggestion, Verification

_SHOWN = 3


def render(comparison: Comparison) -> RenderableType:
    """Lay a comparison out.

    Parameters
    ----------
    comparison : Comparison
        What was found.

    Returns
    -------
    rich renderable
        The differences, the equal calls and the corner cases.
    """
    return Group(
        *_heads(comparison),
        _differences(comparison),
        *(part for item in comparison.suggestions for part in _suggestion(item)),
        *_corners(comparison),
    )


def _heads(comparison: Comparison) -> Iterator[RenderableType]:
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        yield Text(f"{letter}  {side.call}", style="bold")
        yield Text(f"   {side.name}, {side.problem or f'version {side.version}'}")
        yield Text(f"   {side.documentation}", no_wrap=True, overflow="ignore")
    yield Text(f"The target is class {comparison.target}.\n")


def _differences(comparison: Comparison) -> RenderableType:
    if not comparison.differences:
        return Text("Both have the same options, with the same names.\n")
    table = _table("Differences", "aspect", "A", "B", "note")
    for found in comparison.differences:
        table.add_row(found.aspect, Text(found.a), Text(found.b), Text(found.note))
    return table


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, leading=1)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header in ("aspect", "differs in"))
    return table


def _suggestion(found: Suggestion) -> Iterator[RenderableType]:
    yield Text()
    if not found.code:
        yield Text(f"No call of {found.loss} equals A: {found.reason}.")
        return
    heading = f"{found.loss} equals A, for logits of shape (rows, C), in this call:"
    yield Text(heading, style="bold")
    yield Syntax(found.code, "python", background_color="default", word_wrap=True)
    if found.verification is None:
        yield Text(found.reason)
    else:
        yield _verification(found.verification)


def _verification(found: Verification) -> Text:
    gradient = (
        "there is no gradient to compare"
        if found.gradient_ulp is None
        else f"the gradients by {_ulp(found.gradient_ulp)}"
    )
    verdict = "equal up to rounding" if found.equal else "NOT equal"
    text = (
        f"Checked on {found.rows} random rows of {found.classes} classes in float32: {verdict}. "
        f"The losses differ by {_ulp(found.loss_ulp)} of the largest loss, {gradient}."
    )
    return Text(text, style="green" if found.equal else "red")


def _ulp(value: float) -> str:
    return f"{value:.2f} ULP"


def _corners(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text()
    if not comparison.corners_asked:
        problems = [side.problem for side in (comparison.a, comparison.b) if side.problem]
        yield Text(f"The corner cases were not compared{''.join(f': {p}' for p in problems[:1])}.")
        return
    summary = (
        f"{len(comparison.corners)} of the {comparison.corners_asked} corner cases that both "
        "support have different results"
    )
    if not comparison.corners:
        yield Text(f"{summary}.")
        return
    table = _table(summary, "case", "differs in", "A", "B")
    for corner in comparison.corners:
        table.add_row(
            Text(corner.title),
            "\n".join(corner.differences),
            Text(_outcome(corner, corner.a)),
            Text(_outcome(corner, corner.b)),
        )
    yield table


def _outcome(corner: CornerDifference, outcome: Outcome) -> str:
    if outcome.error is not None:
        message = f": {outcome.message}" if outcome.message else ""
        return f"{outcome.error}{message}"
    parts = [_numbers(outcome.loss)]
    if "gradient" in corner.differences:
        parts.append(f"gradient {_numbers(outcome.gradient)}")
    if "dtype" in corner.differences:
        parts.append(str(outcome.dtype))
    return "; ".join(parts)


def _numbers(values: Nested | None) -> str:
    if values is None:
        return "..."
    if not isinstance(values, tuple):
        return f"{values:.6g}"
    shown = [_numbers(value) for value in values[:_SHOWN]]
    return f"[{', '.join(shown)}{', ...' if len(values) > _SHOWN else ''}]"
