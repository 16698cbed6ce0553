"""A report as rich tables, for a terminal."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xentx.compare import words
from xentx.compare.report import (
    CornerReport,
    CornerResult,
    Errors,
    Loss,
    Measurement,
    Nested,
    Outcome,
    RegimeReport,
    Report,
)

_TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
}
_STYLES = {"accurate": "green", "close": "yellow", "wrong": "red", "error": "red"}
_SHOWN_CLASSES = 4
_SHOWN_ROWS = 2


def render(report: Report, *, every: bool = False) -> RenderableType:
    """Lay a report out.

    Parameters
    ----------
    report : Report
        The results.
    every : bool, default: False
        Whether each loss has a row, with mean errors and small gradients, in 140 characters.
        Otherwise the losses of a framework with equal results share a row, in 100 characters.

    Returns
    -------
    rich renderable
        Its tables, what was left out, and the failures.
    """
    parts: list[RenderableType] = [
        _regime(report, regime, every=every) for regime in report.regimes
    ]
    groups = [alike for regime in report.regimes for alike in _rows(report, regime)]
    if not every and any(len(alike) > 1 for alike in groups):
        text = "(+2): two more losses have these numbers, none is faster. --all lists every loss."
        parts.append(Text(text))
    if report.corners:
        parts.append(_corners(report))
    parts.extend(_legend(report))
    parts.extend(_left_out(report))
    parts.append(_summary(report))
    return Group(*parts)


def _ulp(value: float) -> str:
    if value >= 1e4:  # noqa: PLR2004 -- the width of the column
        return f"{value:.1e}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004


def _errors(errors: Errors | None, *, every: bool) -> str:
    if errors is None:
        return "-"
    largest = _ulp(errors.max_ulp)
    return f"{largest} / {_ulp(errors.mean_ulp)}" if every else largest


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    unit, scale = next(
        (pair for pair in (("s", 1.0), ("ms", 1e3)) if value * pair[1] >= 1.0), ("µs", 1e6)
    )
    return f"{value * scale:.3g} {unit}"


def _numbers(values: Nested | None, scale: float = 1.0) -> str:
    """Format an array with a line for each row."""
    if values is None:
        return "..."
    if not isinstance(values, tuple):
        return f"{values * scale:.6g}" if isinstance(values, float) else str(values)
    nested = any(isinstance(value, tuple) for value in values)
    inner = (_numbers(value, scale) for value in values)
    return "\n".join(inner) if nested else f"[{', '.join(inner)}]"


def _framework(report: Report, name: str) -> str:
    versions = {library.name: library.version for library in report.libraries}
    version = versions.get(name)
    backends = report.keras_backends if name == "keras" else ()
    on = f" on {', '.join(backends)}" if backends else ""
    return f"{_TITLES.get(name, name)}{f' {version}' if version else ''}{on}"


def _missing(report: Report, framework: str) -> str | None:
    """Return the reason why a framework has no rows, or None."""
    problems = [loss.problem for loss in report.losses if loss.framework == framework]
    return None if None in problems else problems[0]


def _regime(report: Report, regime: RegimeReport, *, every: bool) -> RenderableType:
    title = f"{regime.name}: {regime.description}"
    if regime.problem is not None:
        return Text(f"{title}: left out, {regime.problem}\n")
    caption = (
        f"{regime.rows} rows, {regime.classes} class{'es' * (regime.classes != 1)}, "
        f"{regime.dtype}; true mean loss {regime.truth:.9g}{words.nan_rows(regime)}. Errors: "
        f"{'max / mean' if every else 'the largest'}, in ULP of {regime.dtype}, against the "
        "true values."
    )
    table = Table(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1) if every else (0, 1, 0, 0),
        pad_edge=every,
    )
    columns = _columns(regime, every=every)
    table.add_column("loss", overflow="fold")
    for column in columns:
        table.add_column(column.name, justify=column.justify, no_wrap=True)
    losses = {loss.id: loss for loss in report.losses}
    groups = [[found] for found in regime.measurements] if every else _rows(report, regime)
    for framework in dict.fromkeys(loss.framework for loss in report.losses):
        table.add_row(Text(_framework(report, framework), style="bold"))
        missing = _missing(report, framework)
        if missing:
            table.add_row(Text(missing, style="yellow"))
        for found, *others in groups:
            loss = losses[found.loss]
            name = _name(loss, short=not every)
            name.append(f" (+{len(others)})" * bool(others), style="dim")
            if loss.framework == framework and found.verdict == "error":
                table.add_row(name, *("-" for _ in columns))
                table.add_row(Text(f"  {found.message}", style="red"))
            elif loss.framework == framework and found.mean is not None:
                table.add_row(name, *(column.cell(found) for column in columns))
        table.add_row()
    return Group(table, Text())


def _columns(regime: RegimeReport, *, every: bool) -> tuple["_Column", ...]:
    """Return the columns after the name. Without `every`, gradients are left out for the width."""
    digits = 9 if every else 6
    time = _Column("time", lambda found: _seconds(found.seconds))
    mean = _Column("mean", lambda found: _number(found.mean, digits))
    loss_error = _Column("loss error", lambda found: _errors(found.loss_errors, every=every))
    error = _Column("gradient error", lambda found: _errors(found.gradient_errors, every=every))
    verdict = _Column("verdict", _verdict, justify="left")
    if not every:
        loss_error = replace(loss_error, name="loss\nerror")
        error = replace(error, name="grad.\nerror")
        return mean, loss_error, error, verdict, time
    if regime.rows <= _SHOWN_ROWS and regime.classes <= _SHOWN_CLASSES:
        gradient = _Column(
            "gradient of the mean", lambda found: _entries(found.row_gradients, regime.rows)
        )
    else:
        gradient = _Column("|gradient|", lambda found: _number(found.gradient_norm, digits))
    return mean, loss_error, gradient, error, verdict, time


def _rows(report: Report, regime: RegimeReport) -> list[list[Measurement]]:
    """Group the losses of a framework with equal printed numbers, the fastest one first."""
    losses = {loss.id: loss for loss in report.losses}
    alike: dict[Any, list[Measurement]] = {}
    for found in regime.measurements:
        if found.mean is None and found.verdict != "error":
            continue
        loss = losses[found.loss]
        errors = (_errors(e, every=False) for e in (found.loss_errors, found.gradient_errors))
        numbers = (_number(found.mean, 6), *errors, found.verdict, found.message)
        alike.setdefault((loss.framework, loss.is_xentx, *numbers), []).append(found)
    return [sorted(group, key=_time) for group in alike.values()]


def _time(found: Measurement) -> float:
    return math.inf if found.seconds is None else found.seconds


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a regime's table."""

    name: str
    cell: Callable[[Measurement], RenderableType]
    justify: JustifyMethod = "right"


def _name(loss: Loss, *, short: bool) -> Text:
    # The heading names the framework.
    text = f"xentx{loss.id.removeprefix(f'xentx:{loss.framework}')}" if loss.is_xentx else loss.id
    style = "bold cyan" if loss.is_xentx else "dim" if loss.caveat else ""
    if not short:
        return Text(text, style=style)
    return Text(text.removeprefix(f"{loss.framework}:"), style, no_wrap=True, overflow="ellipsis")


def _verdict(found: Measurement) -> Text:
    return Text(found.verdict, style=_STYLES.get(found.verdict, ""))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _entries(rows: Nested | None, divisor: int) -> str:
    if not isinstance(rows, tuple):
        return "-"
    return "\n".join(
        " ".join(f"{value / divisor:9.6f}" for value in row if isinstance(value, int | float))
        for row in rows
        if isinstance(row, tuple)
    )


def describe(outcome: Outcome) -> str:
    """Describe the result of a call in a few lines.

    Parameters
    ----------
    outcome : Outcome
        The result for a corner case.

    Returns
    -------
    str
        The error, or the loss with its gradient if that is small.
    """
    if outcome.error is not None:
        return f"{outcome.error}: {outcome.message}" if outcome.message else outcome.error
    loss = _numbers(outcome.loss).replace("\n", " ")
    if outcome.gradient is None:
        return loss
    gradient = _numbers(outcome.gradient).replace("\n", " ")
    return f"{loss}, gradient {gradient}"


def _answers(results: Iterable[CornerResult]) -> Iterator[tuple[str, list[str]]]:
    """Group losses with equal deviations."""
    alike: dict[tuple[str, ...], list[CornerResult]] = {}
    for result in results:
        if result.verdict == "deviates" and result.outcome is not None:
            key = (*result.differences, describe(result.outcome))
            alike.setdefault(key, []).append(result)
    for key, group in alike.items():
        yield f"{', '.join(key[:-1])}: {key[-1]}", [result.loss for result in group]


def _corners(report: Report) -> RenderableType:
    table = Table(
        title="Corner cases: the result by xentx's rule, and losses that deviate from it",
        title_justify="left",
        show_lines=True,
    )
    table.add_column("corner", overflow="fold", ratio=2)
    table.add_column("xentx", overflow="fold", ratio=2)
    table.add_column("deviates", overflow="fold", ratio=4)
    for corner in report.corners:
        table.add_row(escape(corner.title), escape(describe(corner.expected)), _deviations(corner))
    return Group(table, Text())


def _deviations(corner: CornerReport) -> RenderableType:
    lines = Text()
    for answer, losses in _answers(corner.results):
        if lines:
            lines.append("\n")
        lines.append(", ".join(losses), style="bold")
        lines.append(f" {answer}")
    asked = sum(result.outcome is not None for result in corner.results)
    return lines or Text(f"none of {asked}", style="green")


def _left_out(report: Report) -> Iterator[RenderableType]:
    missing = {
        f"{library.name}: {library.problem}" for library in report.libraries if library.problem
    }
    for loss in report.losses:
        whole = any(
            library.name == loss.library and library.problem for library in report.libraries
        )
        if loss.problem and not whole:
            missing.add(f"{loss.id}: {loss.problem}")
    if missing:
        yield Text("Left out:", style="bold")
        yield from (Text(f"  {line}") for line in sorted(missing))
    slow = {
        f"  {found.loss}: {found.message}"
        for regime in report.regimes
        for found in regime.measurements
        if found.verdict == "not applicable" and found.message
    }
    if slow:
        yield Text("Not measured:", style="bold")
        yield from (Text(line) for line in sorted(slow))


def _summary(report: Report) -> RenderableType:
    ours = [loss.id for loss in report.losses if loss.is_xentx and loss.problem is None]
    if report.passed:
        judged: dict[str, Any] = {
            "none": "no tolerance is checked",
            "xentx": f"{', '.join(ours)} within tolerance",
            "any": "every loss within its tolerance",
        }
        return Text(f"passed: {judged[report.fail_on]}", style="bold green")
    lines = "".join(f"\n  {line}" for line in report.failures)
    return Text(f"failed:{lines}", style="bold red")


def _legend(report: Report) -> Iterator[RenderableType]:
    tolerances = {
        regime.dtype: (regime.loss_tolerance, regime.gradient_tolerance)
        for regime in report.regimes
    }
    for dtype, ulp in tolerances.items():
        yield Text(
            f"{dtype}: accurate results are within {ulp[0]:g} ULP of the true loss and {ulp[1]:g} "
            "ULP of the true gradient. Close results are within the rounding error of the logits.",
            style="dim",
        )
    for bad in report.losses:
        if bad.caveat and bad.problem is None:
            yield Text(f"{bad.id}: {bad.caveat}", style="dim")
