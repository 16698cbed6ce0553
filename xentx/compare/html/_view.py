"""The contents of the page: counted, grouped and formatted, without layout.

The templates read the dataclasses below. The script reads `View.data`. It does not compute numbers,
so that page and script cannot disagree.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Literal

from xentx.compare import words
from xentx.compare._floats import FORMATS
from xentx.compare.regimes import GAPS
from xentx.compare.report import (
    CornerReport,
    Errors,
    Loss,
    Measurement,
    Nested,
    RegimeReport,
    Report,
)

Part = Literal["loss", "gradient"]
PARTS: tuple[Part, ...] = ("loss", "gradient")

COLOUR_RANGE = (-0.5, 8.0)
"""Decimal logarithms of the errors, in ULP, at the ends of the colour scale."""

VISIBLE = 2.0**-4
"""Smallest relative error that is drawn, in eps, because a logarithmic axis has no 0."""

ONE_PERCENT = 0.01

FRAMEWORKS = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
}
"""Names of the frameworks."""


def framework_name(framework: str) -> str:
    """Return the name of a framework. Unknown ones keep the name of their record."""
    return FRAMEWORKS.get(framework, framework)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that was not measured, and the reason."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The numbers of corner cases of a framework's own losses, and of those with deviations."""

    framework: str
    name: str
    libraries: str
    losses: int
    asked: int
    deviating: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """All losses on all regimes in one dtype, as a table."""

    dtype: str
    regimes: tuple[RegimeReport, ...]
    rows: tuple[tuple[Loss, tuple[tuple[str, str], ...]], ...]
    """Each loss with the errors of loss and gradient for each regime."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The smallest gaps at which a loss is wrong or 0."""

    loss: Loss
    one_percent: str
    loss_zero: str
    gradient_zero: str


@dataclass(frozen=True, slots=True)
class Drops:
    """The table of the gaps for one dtype."""

    dtype: str
    rows: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """The results of a framework's own losses for a corner case."""

    framework: str
    answers: tuple[words.Answer, ...]
    refusal: str

    @property
    def deviates(self) -> bool:
        """Whether one of them deviates from xentx's rule."""
        return any(answer.deviates for answer in self.answers)


@dataclass(frozen=True, slots=True)
class CornerRow:
    """A corner case across the frameworks."""

    corner: CornerReport
    expected: str
    traced: str | None
    own: Cell
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The page."""

    findings: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    tallies: tuple[Tally, ...]
    frameworks: tuple[str, ...]
    accuracy: tuple[Accuracy, ...]
    drops: tuple[Drops, ...]
    groups: tuple[tuple[str, tuple[CornerRow, ...]], ...]
    deviating: int
    data: dict[str, Any]


def view(report: Report) -> View:
    """Compute the contents of the page of a report."""
    frameworks = tuple(dict.fromkeys(loss.framework for loss in report.losses if not loss.is_xentx))
    rows = tuple(_corner_row(report, corner, frameworks) for corner in report.corners)
    groups = tuple((n, tuple(g)) for n, g in groupby(rows, key=lambda row: row.corner.group))
    gaps = [regime for regime in _measured(report) if regime.name == "gap" and regime.true_losses]
    return View(
        findings=tuple(_findings(report, rows, gaps)),
        left_out=tuple(_left_out(report)),
        tallies=tuple(_tally(report, rows, at) for at in range(len(frameworks))),
        frameworks=frameworks,
        accuracy=tuple(_accuracy(report, *by_dtype) for by_dtype in _by_dtype(report)),
        drops=tuple(_drops(report, regime) for regime in gaps),
        groups=groups,
        deviating=sum(any(cell.deviates for cell in row.cells) for row in rows),
        data={
            "frameworks": {name: framework_name(name) for name in frameworks},
            "losses": [_loss_data(loss) for loss in report.losses],
            "colourRange": COLOUR_RANGE,
            "heat": [_heat_data(report, *by_dtype) for by_dtype in _by_dtype(report)],
            "gaps": [_gap_data(report, regime) for regime in gaps],
            "deviations": {
                "groups": [name for name, _ in groups],
                "cases": [len(members) for _, members in groups],
                "counts": [
                    [sum(row.cells[at].deviates for row in members) for _, members in groups]
                    for at in range(len(frameworks))
                ],
            },
            "corners": [_corner_data(report, row) for row in rows],
        },
    )


def _measured(report: Report) -> list[RegimeReport]:
    return [regime for regime in report.regimes if regime.problem is None]


def _by_dtype(report: Report) -> Iterator[tuple[str, tuple[RegimeReport, ...]]]:
    measured = _measured(report)
    for dtype in dict.fromkeys(regime.dtype for regime in measured):
        yield dtype, tuple(regime for regime in measured if regime.dtype == dtype)


# The findings: sentences at the top of the page


def _findings(
    report: Report, rows: Sequence[CornerRow], gaps: Sequence[RegimeReport]
) -> Iterator[str]:
    natives = [at for at, loss in enumerate(report.losses) if not (loss.is_xentx or loss.caveat)]
    for dtype, regimes in _by_dtype(report):
        found = [[regime.measurements[at] for regime in regimes] for at in natives]
        verdicts = [{one.verdict for one in row} - {"unavailable"} for row in found]
        measured = [row for row in verdicts if row != {"not applicable"} and row]
        bad = [row for row in measured if row & {"close", "wrong", "error"}]
        if measured:
            yield (
                "Losses of the frameworks that exceed the tolerance for at least one of "
                f"{words.count(len(regimes), 'kind')} of logits in {dtype}: {len(bad)} of "
                f"{len(measured)}. Largest error of xentx: {_largest(report, regimes)}."
            )
    for regime in gaps[:1]:
        drops = _drops(report, regime).rows
        own = [drop for drop in drops if not (drop.loss.is_xentx or drop.loss.caveat)]
        zeros = [int(drop.loss_zero) for drop in own if drop.loss_zero != "never"]
        if zeros:
            yield (
                "Losses of the frameworks that return exactly 0 for confident predictions in "
                f"{regime.dtype}: {len(zeros)} of {len(own)}, from a gap of {min(zeros)} between "
                "the logits on."
            )
    if rows:
        others = sum(any(cell.deviates for cell in row.cells) for row in rows)
        yield (
            "Corner cases in which at least one loss of the frameworks deviates from xentx's rule: "
            f"{others} of {len(rows)}. xentx deviates in {sum(row.own.deviates for row in rows)}."
        )


def _largest(report: Report, regimes: Sequence[RegimeReport]) -> str:
    """Return the largest errors of xentx's losses and gradients as text."""
    found = [
        regime.measurements[at]
        for at, loss in enumerate(report.losses)
        for regime in regimes
        if loss.is_xentx
    ]
    parts = (
        max((e.max_ulp for one in found if (e := _of(one, part)) is not None), default=None)
        for part in PARTS
    )
    loss, gradient = (words.number(largest, 2) for largest in parts)
    return f"{loss} ULP for losses and {gradient} ULP for gradients"


# Things left out, and the totals of the frameworks


def _left_out(report: Report) -> Iterator[LeftOut]:
    silent = {library.name for library in report.libraries if library.problem is not None}
    for library in report.libraries:
        if library.problem is not None:
            yield LeftOut(library.name, library.problem)
    for loss in report.losses:
        reason = loss.problem or _never_asked(report, loss)
        if reason is not None and loss.library not in silent:
            yield LeftOut(loss.id, reason)
    for regime in report.regimes:
        if regime.problem is not None:
            yield LeftOut(f"{regime.name} in {regime.dtype}", regime.problem)


def _never_asked(report: Report, loss: Loss) -> str | None:
    """Return the reason why a loss was never measured, if there is a single one."""
    asked = {
        (found.verdict, found.message)
        for regime in report.regimes
        for found in regime.measurements
        if found.loss == loss.id
    } | {
        (found.verdict, found.message)
        for corner in report.corners
        for found in corner.results
        if found.loss == loss.id
    }
    verdict, reason = next(iter(asked)) if len(asked) == 1 else ("", None)
    return reason if verdict == "not applicable" else None


def _tally(report: Report, rows: Sequence[CornerRow], at: int) -> Tally:
    cells = [row.cells[at] for row in rows]
    framework = next(iter(cells)).framework if cells else ""
    losses = [x for x in report.losses if x.framework == framework and not x.is_xentx]
    libraries = {x.library for x in losses}
    return Tally(
        framework=framework,
        name=framework_name(framework),
        libraries=", ".join(
            f"{library.name} {library.version or 'not installed'}"
            for library in report.libraries
            if library.name in libraries
        ),
        losses=sum(loss.problem is None for loss in losses),
        asked=sum(bool(cell.answers) for cell in cells),
        deviating=sum(cell.deviates for cell in cells),
    )


# Accuracy


def _of(measurement: Measurement, part: Part) -> Errors | None:
    return measurement.loss_errors if part == "loss" else measurement.gradient_errors


def _figure(measurement: Measurement, part: Part) -> str:
    errors = _of(measurement, part)
    if errors is not None:
        return words.number(errors.max_ulp, 2)
    return "error" if measurement.verdict == "error" else words.number(None)


def _accuracy(report: Report, dtype: str, regimes: tuple[RegimeReport, ...]) -> Accuracy:
    return Accuracy(
        dtype=dtype,
        regimes=regimes,
        rows=tuple(
            (
                loss,
                tuple(
                    (_figure(found, "loss"), _figure(found, "gradient"))
                    for found in (regime.measurements[at] for regime in regimes)
                ),
            )
            for at, loss in enumerate(report.losses)
        ),
    )


def _hover(loss: Loss, regime: RegimeReport, found: Measurement, part: Part) -> str:
    """Return the tooltip of a cell as HTML."""
    errors = _of(found, part)
    lines = [f"<b>{escape(loss.id)}</b>", f"{regime.name} in {regime.dtype}: {part}"]
    if errors is None:
        lines.append(escape(found.message or "has no gradient"))
    else:
        lines += [
            f"{found.verdict}",
            f"max {words.number(errors.max_ulp)} ULP, mean {words.number(errors.mean_ulp)} ULP",
            f"max absolute error {words.number(errors.max_absolute)}",
            f"wrongly 0: {words.percent(errors.zeros)}",
        ]
        if found.seconds is not None:
            lines.append(f"loss and gradient in {words.seconds(found.seconds)}")
    return "<br>".join(lines)


def _colour(found: Measurement, part: Part) -> float | None:
    low, high = COLOUR_RANGE
    errors = _of(found, part)
    if errors is None:
        return high if found.verdict == "error" else None
    return min(max(math.log10(errors.max_ulp), low), high) if errors.max_ulp > 0.0 else low


def _heat_data(report: Report, dtype: str, regimes: tuple[RegimeReport, ...]) -> dict[str, Any]:
    def grid(part: Part) -> dict[str, Any]:
        found = [
            [(loss, regime, regime.measurements[at]) for regime in regimes]
            for at, loss in enumerate(report.losses)
        ]
        return {
            "z": [[_colour(m, part) for _, _, m in row] for row in found],
            "text": [[_figure(m, part) for _, _, m in row] for row in found],
            "hover": [[_hover(loss, regime, m, part) for loss, regime, m in row] for row in found],
        }

    return {
        "dtype": dtype,
        "regimes": [regime.name for regime in regimes],
        "parts": {part: grid(part) for part in PARTS},
    }


# The confidence gap


def _floats(values: Nested | None, part: Part) -> list[float] | None:
    """Return the losses, or the gradients of the target's logit, which is class 0."""
    if not isinstance(values, Sequence):
        return None
    return [float(v[0] if part == "gradient" else v) for v in values]  # type: ignore[index, arg-type]


@dataclass(frozen=True, slots=True)
class _Curve:
    """Relative errors by gap, for true values that are normal numbers."""

    gaps: tuple[int, ...]
    errors: tuple[float, ...]
    values: tuple[float, ...]

    def first(self, reached: Iterable[bool]) -> str:
        gap = next((gap for gap, yes in zip(self.gaps, reached, strict=True) if yes), None)
        return "never" if gap is None else f"{gap}"


def _curve(regime: RegimeReport, found: Measurement, part: Part) -> _Curve | None:
    hard = part == "loss"
    true = _floats(regime.true_losses if hard else regime.true_gradients, part)
    got = _floats(found.row_losses if hard else found.row_gradients, part)
    if true is None or got is None:
        return None
    tiny = FORMATS[regime.dtype].tiny
    points = [
        (gap, abs(g - t) / abs(t), g)
        for gap, t, g in zip(GAPS, true, got, strict=True)
        if abs(t) >= tiny
    ]
    gaps, errors, values = zip(*points, strict=True)
    return _Curve(gaps, errors, values)


def _drops(report: Report, regime: RegimeReport) -> Drops:
    def drop(loss: Loss, found: Measurement) -> Drop | None:
        curve, slope = (_curve(regime, found, part) for part in PARTS)
        if curve is None:
            return None
        return Drop(
            loss=loss,
            one_percent=curve.first(error > ONE_PERCENT for error in curve.errors),
            loss_zero=curve.first(value == 0.0 for value in curve.values),
            gradient_zero=words.number(None)
            if slope is None
            else slope.first(value == 0.0 for value in slope.values),
        )

    rows = map(drop, report.losses, regime.measurements)
    return Drops(regime.dtype, tuple(row for row in rows if row is not None))


def _gap_data(report: Report, regime: RegimeReport) -> dict[str, Any]:
    form = FORMATS[regime.dtype]
    least = form.eps * VISIBLE

    def trace(losses: Sequence[int], curve: _Curve) -> dict[str, Any]:
        names = "<br>".join(f"<b>{escape(report.losses[at].id)}</b>" for at in losses)
        return {
            "loss": losses[0],
            "x": curve.gaps,
            "y": [max(error, least) if math.isfinite(error) else None for error in curve.errors],
            "hover": [
                f"{names}<br>gap {gap}: {words.number(value)}<br>"
                f"relative error {words.number(error, 2)}"
                for gap, value, error in zip(curve.gaps, curve.values, curve.errors, strict=True)
            ],
        }

    def traces(part: Part) -> list[dict[str, Any]]:
        # Losses of a framework with bit-identical results share a curve.
        alike: dict[tuple[bool, str, _Curve], list[int]] = {}
        for at, (loss, found) in enumerate(zip(report.losses, regime.measurements, strict=True)):
            curve = _curve(regime, found, part)
            if curve is not None:
                alike.setdefault((loss.is_xentx, loss.framework, curve), []).append(at)
        return [trace(losses, curve) for (_, _, curve), losses in alike.items()]

    return {
        "dtype": regime.dtype,
        "least": least,
        "lost": form.precision * math.log(2.0),
        "bits": form.precision,
        "parts": {part: traces(part) for part in PARTS},
    }


# Corner cases


def _corner_row(report: Report, corner: CornerReport, frameworks: Sequence[str]) -> CornerRow:
    own = [loss for loss in report.losses if loss.is_xentx]
    expected, traced = words.rule(corner), words.rule(corner, traced=True)
    return CornerRow(
        corner=corner,
        expected=expected,
        traced=traced if traced != expected else None,
        own=_cell("xentx", corner, own),
        cells=tuple(
            _cell(
                name,
                corner,
                [loss for loss in report.losses if loss.framework == name and not loss.is_xentx],
            )
            for name in frameworks
        ),
    )


def _cell(framework: str, corner: CornerReport, losses: Sequence[Loss]) -> Cell:
    answers = words.answers(corner, losses)
    ids = {loss.id for loss in losses}
    reasons = dict.fromkeys(r.message for r in corner.results if r.loss in ids and r.message)
    return Cell(framework, answers, "" if answers else "; ".join(map(str, reasons)))


def _corner_data(report: Report, row: CornerRow) -> dict[str, Any]:
    """Return the distinct results, and the index of the result of each loss."""
    answers = words.answers(row.corner, report.losses)
    number = {loss.id: at for at, answer in enumerate(answers) for loss in answer.losses}
    return {
        "group": row.corner.group,
        "title": row.corner.title,
        "rule": row.expected,
        "answers": [[answer.text, answer.error, answer.deviates] for answer in answers],
        "of": [number.get(loss.id) for loss in report.losses],
    }


def _loss_data(loss: Loss) -> dict[str, Any]:
    return {
        "id": loss.id,
        "framework": loss.framework,
        "own": loss.is_xentx,
        "documentation": loss.documentation,
        "caveat": loss.caveat,
        "traits": {
            "takes": loss.takes,
            "targets": ", ".join(loss.targets),
            "class axis": loss.class_axis,
            "dtypes of logits": ", ".join(loss.logits_dtypes),
            "dtypes of class indices": ", ".join(loss.target_dtypes)
            if "indices" in loss.targets
            else words.number(None),
            **{f"option {name}": spelling for name, spelling in loss.options.items()},
            **{f"reduction {name}": spelling for name, spelling in loss.reductions.items()},
        },
    }
