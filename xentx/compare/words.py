"""Texts of numbers and results, for the HTML report and docs/deviations.md.

A result that follows xentx's rule has the text of the rule. Other results are rounded to a few
digits. So equal results have equal texts, and rounding errors, which differ between processors, do
not change the text.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xentx.compare.report import (
    CornerReport,
    CornerResult,
    Difference,
    Loss,
    Nested,
    Outcome,
    RegimeReport,
)

DIGITS = (4, 6, 9)
"""Numbers of significant digits. The smallest that distinguishes a result from the rule is used."""

FEW = 8
"""Number of entries of an array that are shown."""

NOISE = {"float16": 2.0**-8, "bfloat16": 2.0**-6, "float32": 2.0**-17, "float64": 2.0**-17}
"""Relative difference up to which two entries of a gradient count as equal, by dtype of logits."""

_SMALL, _WRITTEN_OUT = 1e-4, 1e6
_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))

DIFFERENCES: dict[Difference, str] = {
    "accepts": "accepts invalid arguments",
    "refuses": "rejects valid arguments",
    "shape": "different shape",
    "dtype": "different dtype",
    "sign of zero": "-0 instead of +0",
    "error": "different error",
}
"""Texts of the differences that the result itself does not show."""


def number(value: float | None, digits: int = DIGITS[0]) -> str:
    """Format a number. None is a dash.

    Examples
    --------
    >>> [number(x) for x in (0.39057374, 2.06115369e-09, 16777216.0, 10000, -0.0, math.nan)]
    ['0.3906', '2.061e-9', '1.678e7', '10,000', '-0', 'NaN']
    >>> number(4234.5, 2)
    '4,200'
    """
    if value is None:
        return "—"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == round(value) and abs(value) < _WRITTEN_OUT:
        return f"{value:,.0f}"
    rounded = float(f"{value:.{digits}g}")
    if _SMALL <= abs(rounded) < _WRITTEN_OUT:
        return f"{rounded:,.{digits}g}" if abs(rounded) < 10.0**digits else f"{rounded:,.0f}"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def count(things: int, singular: str, plural: str | None = None) -> str:
    """Format a number of things.

    Examples
    --------
    >>> count(1, "loss", "losses"), count(1797, "row")
    ('1 loss', '1,797 rows')
    """
    return f"{things:,} {singular if things == 1 else plural or singular + 's'}"


def nan_rows(regime: RegimeReport) -> str:
    """Return the number of rows that make a mean NaN as text. Empty if there are none."""
    if not regime.nan_rows:
        return ""
    verb = "is" if regime.nan_rows == 1 else "are"
    return f" ({regime.nan_rows:,} of {count(regime.rows, 'row')} {verb} NaN)"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage.

    Examples
    --------
    >>> percent(0.9615), percent(0.0)
    ('96 %', '0 %')
    """
    return f"{fraction:.0%}".replace("%", " %")


def seconds(value: float | None) -> str:
    """Format a duration. None is a dash.

    Examples
    --------
    >>> [seconds(x) for x in (0.0000123, 0.0123, 1.23)]
    ['12 µs', '12 ms', '1.2 s']
    """
    if value is None:
        return number(None)
    unit, scale = next((unit, scale) for unit, scale in _UNITS if value >= scale or unit == "µs")
    return f"{number(value / scale, 2)} {unit}"


def array(values: Nested, digits: int = DIGITS[0]) -> str:
    """Format a number or nested tuples of numbers. Long tuples are cut off.

    Examples
    --------
    >>> array(0.5), array(((1.0, 2.0), (0.25, -0.0))), array(tuple(range(20)))
    ('0.5', '[[1, 2], [0.25, -0]]', '[0, 1, 2, 3, 4, 5, 6, 7, …]')
    """
    if isinstance(values, Sequence):
        left_out = len(values) > FEW
        entries = [array(value, digits) for value in values[:FEW]] + ["…"] * left_out
        return f"[{', '.join(entries)}]"
    return number(values, digits)


def _unsigned(values: Nested) -> Nested:
    if isinstance(values, Sequence):
        return tuple(map(_unsigned, values))
    return values + 0.0  # -0.0 becomes 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A result of one or more losses for a corner case.

    Parameters
    ----------
    text
        The loss, with the gradient if that differs; or the type of the error.
    error
        Whether it is an error.
    deviates
        Whether it differs from xentx's rule.
    differences
        What differs.
    messages
        Texts of the errors.
    losses
        The losses with this result.
    """

    text: str
    error: bool
    deviates: bool
    differences: tuple[Difference, ...]
    messages: tuple[str, ...]
    losses: tuple[Loss, ...]

    @property
    def changes(self) -> str:
        """The differences in words, without those that the text shows."""
        hidden = "gradient" in self.differences and "gradient" not in self.text
        found = [words for name, words in DIFFERENCES.items() if name in self.differences]
        return ", ".join([*found, "different gradient"] if hidden else found)


def _rows(gradient: Nested) -> tuple[Nested, ...]:
    return tuple(gradient) if isinstance(gradient, Sequence) else (gradient,)


def _alike(one: Nested, other: Nested, dtype: str) -> bool:
    """Whether two arrays are equal up to rounding."""
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_alike(*pair, dtype) for pair in pairs)
    if isinstance(one, Sequence) or isinstance(other, Sequence):
        return False
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=NOISE[dtype])


def _differing_rows(corner: CornerReport) -> tuple[int, ...]:
    """Return the rows of the gradient in which a loss deviates."""
    rule = corner.expected if corner.expected.error is None else corner.traced
    if rule.gradient is None:
        return ()
    found: set[int] = set()
    for result in corner.results:
        outcome = result.outcome
        if "gradient" in result.differences and outcome is not None and outcome.gradient:
            pairs = zip(_rows(rule.gradient), _rows(outcome.gradient), strict=False)
            found |= {at for at, pair in enumerate(pairs) if not _alike(*pair, corner.logits_dtype)}
    return tuple(sorted(found))


def _gradient(gradient: Nested, rows: Sequence[int]) -> Nested:
    """Return rows of a gradient."""
    every = _rows(gradient)
    if not isinstance(every[0], Sequence):
        return gradient
    chosen = tuple(every[at] for at in rows if at < len(every))
    return chosen[0] if len(chosen) == 1 else chosen


def _value(outcome: Outcome, parts: Iterable[Difference], rows: Sequence[int], digits: int) -> str:
    """Format a loss, and the other parts that differ."""
    loss, gradient = outcome.loss, outcome.gradient
    if loss is not None and "sign of zero" not in parts:
        loss = _unsigned(loss)
    text = "a large array" if loss is None else array(loss, digits)
    if "dtype" in parts:
        text += f" in {outcome.dtype}"
    if "gradient" in parts and gradient is not None and rows:
        label = f" of row {rows[0]}" if len(rows) == 1 and len(_rows(gradient)) > 1 else ""
        text += f"; gradient{label} {array(_gradient(_unsigned(gradient), rows), digits)}"
    return text


def rule(corner: CornerReport, *, traced: bool = False, digits: int = DIGITS[0]) -> str:
    """Format the result by xentx's rule for a corner case, for concrete or traced values."""
    outcome = corner.traced if traced else corner.expected
    if outcome.error is not None:
        return outcome.error
    parts = {name for result in corner.results for name in result.differences}
    return _value(outcome, parts, _differing_rows(corner), digits)


def _text(corner: CornerReport, result: CornerResult, *, traced: bool) -> str:
    outcome = result.outcome
    if outcome is None:
        return result.message or ""
    if outcome.error is not None:
        return outcome.error
    if result.verdict == "agrees":
        return rule(corner, traced=traced)
    wanted = corner.traced if traced else corner.expected
    parts, rows = {*result.differences}, _differing_rows(corner)
    if "accepts" in parts:
        parts.add("gradient")  # a value in place of an error is shown with its gradient
    if wanted.error is None and not {"loss", "shape", "sign of zero"}.intersection(parts):
        outcome = replace(outcome, loss=wanted.loss)
    texts = {
        digits: _value(outcome, parts, rows, digits)
        for digits in DIGITS
        if _value(outcome, parts, rows, digits) != _value(wanted, parts, rows, digits)
    }
    return next(iter(texts.values()), rule(corner, traced=traced))


def answers(corner: CornerReport, losses: Sequence[Loss]) -> tuple[Answer, ...]:
    """Group losses by their results for a corner case.

    Parameters
    ----------
    corner
        The case, with a result for each loss of its report.
    losses
        The losses to group.

    Returns
    -------
    tuple of Answer
        Deviations first, then by the number of losses. Losses that do not support the case are left
        out.
    """
    groups: dict[tuple[str, bool], list[tuple[Loss, CornerResult]]] = {}
    results = {result.loss: result for result in corner.results}
    for loss in losses:
        result = results[loss.id]
        if result.outcome is not None:
            key = _text(corner, result, traced=loss.compiled), bool(result.differences)
            groups.setdefault(key, []).append((loss, result))
    found = [
        Answer(
            text=text,
            error=any(r.outcome is not None and r.outcome.error is not None for _, r in members),
            deviates=deviates,
            differences=tuple(dict.fromkeys(name for _, r in members for name in r.differences)),
            messages=tuple(dict.fromkeys(filter(None, (_message(r) for _, r in members)))),
            losses=tuple(loss for loss, _ in members),
        )
        for (text, deviates), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda answer: (not answer.deviates, -len(answer.losses))))


def _message(result: CornerResult) -> str | None:
    return None if result.outcome is None else result.outcome.message


def short(loss: Loss) -> str:
    """Return the name of a loss in a list of its framework's losses.

    It begins with the library if that is not the framework: "optax:softmax_cross_entropy" for JAX,
    but "F.cross_entropy" for PyTorch.
    """
    owner, _, name = loss.id.partition(":")
    own = {"tensorflow": "tf"}.get(loss.framework, loss.framework)
    return name if owner == own else loss.id


def names(losses: Sequence[Loss]) -> tuple[str, ...]:
    """Return the names of losses of a framework, each together with its compiled form."""
    compilers: dict[str, list[str]] = {}
    for loss in losses:
        base, _, compiler = short(loss).rpartition("[")
        if loss.compiled and base in compilers:
            compilers[base].append(compiler.rstrip("]"))
        else:
            compilers[short(loss)] = []
    return tuple(
        f"{name} (also under {', '.join(found)})" if found else name
        for name, found in compilers.items()
    )
