"""Compare two calls: their records, their results for the corner cases, and the equal call."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xentx.compare import CORNERS, RULES, Corner
from xentx.compare._evaluate import Availability, describe, visit
from xentx.compare._floats import FORMATS, distance
from xentx.compare.report import Outcome
from xentx.diff import _plan
from xentx.diff._call import Call, CallError, Value, library, parse
from xentx.diff._comparison import (
    SCHEMA_VERSION,
    Comparison,
    CornerDifference,
    Difference,
    Side,
    Suggestion,
    Verification,
)
from xentx.diff._meaning import DEFAULT_IGNORED, divisor, in_words, meaning
from xentx.natives import Native, runtime_of, xentx_records
from xentx.natives.vocabulary import Target

Progress = Callable[[int, int, str], None]

_ALIKE_ULP = 64.0
"""Difference up to which two results of a corner case count as equal, in ULP."""

_NONE = "none"


def diff(
    a: str,
    b: str,
    *,
    target: Target | None = None,
    corners: bool = True,
    progress: Progress = lambda *_: None,
) -> Comparison:
    """List the differences between two calls, and find the call that makes them equal.

    Parameters
    ----------
    a, b
        The calls, as users write them; see `parse`. The suggestions compute the result of the first
        with the loss of the second.
    target
        The kind of the target, "indices" or "probabilities". The default is the first kind that the
        first call supports.
    corners
        Whether to compare the corner cases.
    progress
        Called for each corner case with the number done, the number of all, and the next one.

    Returns
    -------
    Comparison
        The differences and the equal calls.

    Raises
    ------
    CallError
        If a call cannot be parsed, or its loss does not support such a target.

    Examples
    --------
    >>> found = diff("scipy:log_softmax + gather", "xentx:numpy", corners=False)
    >>> print(found.suggestions[0].code)
    loss = xentx.cross_entropy(logits, target, reduction='none')
    >>> found.suggestions[0].verification.equal
    True
    """
    one, other = parse(a), parse(b)
    kind = target or one.native.targets[0]
    if kind == "probabilities" and kind not in one.native.targets:
        msg = (
            f"target: got {kind!r}; expected 'indices', the only kind that {one.native.id} supports"
        )
        raise CallError(msg)
    available = Availability()
    problems = [available.problem(call.native) for call in (one, other)]
    can_run = not any(problems)
    found = tuple(_corners(one.native, other.native, progress)) if corners and can_run else ()
    differing = tuple(result for result in found if result.differences)
    return Comparison(
        schema=SCHEMA_VERSION,
        a=_side(one, problems[0]),
        b=_side(other, problems[1]),
        target=kind,
        differences=tuple(_differences(one, other, kind, available)),
        suggestions=tuple(_suggestions(one, other, kind, available)),
        corners=differing,
        corners_asked=len(found),
    )


def _side(call: Call, problem: str | None) -> Side:
    return Side(
        call=call.text,
        loss=call.native.id,
        name=call.native.name,
        options={name: str(value) for name, value in call.options.items()},
        reduction=call.reduction,
        version=call.native.version(),
        problem=problem,
        documentation=call.native.documentation,
    )


# Differences between the records.


def _differences(a: Call, b: Call, kind: Target, available: Availability) -> Iterator[Difference]:
    rows = (
        *_inputs(a, b, kind),
        *_options(a, b),
        _reduction(a, b, kind),
        _divisor(a, b, kind),
        _output_dtype(a, b, available),
    )
    yield from (row for row in rows if row.a != row.b)


def _row(aspect: str, a: str, b: str, note: str = "") -> Difference:
    return Difference(aspect=aspect, a=a, b=b, note=note)


def _inputs(a: Call, b: Call, kind: Target) -> Iterator[Difference]:
    one, other = a.native, b.native
    yield _row(
        "first argument",
        one.takes,
        other.takes,
        "Logits in place of probabilities raise no error, and the loss is wrong.",
    )
    encoded = [
        native.id for native in (one, other) if kind == "indices" and kind not in native.targets
    ]
    note = f"{' and '.join(encoded)}: convert class indices to one-hot rows." if encoded else ""
    yield _row("targets", _listed(one.targets), _listed(other.targets), note)
    if "indices" in one.targets and "indices" in other.targets:
        yield _row("target dtypes", _listed(one.target_dtypes), _listed(other.target_dtypes))
    yield _row("logits dtypes", _listed(one.logits_dtypes), _listed(other.logits_dtypes))
    yield _row(
        "class axis",
        one.class_axis,
        other.class_axis,
        "Logits of more than 2 dimensions need their classes on this axis."
        if one.axis != other.axis
        else "",
    )
    yield _row(
        "execution",
        "compiled" if one.compiled else "eager",
        "compiled" if other.compiled else "eager",
        "Compiled code raises no error for targets that are out of range.",
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _options(a: Call, b: Call) -> Iterator[Difference]:
    for name in dict.fromkeys((*a.native.options, *b.native.options)):
        lacking = [call.native.id for call in (a, b) if name not in call.native.options]
        values = [_setting(call, name) for call in (a, b)]
        note = ""
        if lacking and any(name in call.options for call in (a, b)):
            note = f"{lacking[0]} does not have it."
        elif not lacking and values[0] != values[1]:
            note = "The calls differ in its value."
        yield _row(name, _option(a, name), _option(b, name), note)


def _setting(call: Call, name: str) -> Value | None:
    """Value of an option. If it is not given, its default, as far as that is known."""
    default = DEFAULT_IGNORED.get(library(call.native)) if name == "ignore_index" else None
    return call.options.get(name, default)


def _option(call: Call, name: str) -> str:
    if name not in call.native.options:
        return _NONE
    spelling = call.native.options[name]
    if name in call.options:
        return f"{spelling} = {call.options[name]}"
    default = _setting(call, name)
    return spelling if default is None else f"{spelling}, {default} by default"


def _reduction(a: Call, b: Call, kind: Target) -> Difference:
    one, other = (f"{c.reduction}: {c.native.reductions[c.reduction]}" for c in (a, b))
    alike = meaning(a, kind).reduction == meaning(b, kind).reduction
    alike = alike and divisor(a, kind) == divisor(b, kind)
    return _row("reduction", one, other, "The same reduction by another name." if alike else "")


def _divisor(a: Call, b: Call, kind: Target) -> Difference:
    texts = [
        in_words(divisor(call, kind)) if call.reduction not in ("none", "sum") else "nothing"
        for call in (a, b)
    ]
    return _row("divides by", *texts)


def _output_dtype(a: Call, b: Call, available: Availability) -> Difference:
    return _row(
        "output dtype", *(_dtypes(call.native, available.problem(call.native)) for call in (a, b))
    )


def _dtypes(native: Native, problem: str | None) -> str:
    """Measure the dtype of the result for each dtype of the logits."""
    if problem is not None:
        return f"not measured: {problem}"
    found = []
    for name in ("logits-float16", "logits-bfloat16", "logits-float64"):
        corner = CORNERS[name]
        outcome = visit(native, corner).outcome
        if outcome is not None and outcome.dtype is not None:
            found.append(f"{corner.case.dtype} -> {outcome.dtype}")
    return ", ".join(found) or "not measured"


# Results of the corner cases.


def _corners(a: Native, b: Native, progress: Progress) -> Iterator[CornerDifference]:
    """Compare the results of each corner case that both support."""
    for number, corner in enumerate(CORNERS.values()):
        progress(number, len(CORNERS), corner.title)
        one = visit(a, corner).outcome
        other = None if one is None else visit(b, corner).outcome
        if one is not None and other is not None:
            yield CornerDifference(
                name=corner.name,
                title=corner.title,
                differences=tuple(_unlike(corner, one, other)),
                a=one,
                b=other,
                rule=RULES[corner.rule],
            )
    progress(len(CORNERS), len(CORNERS), "")


def _unlike(corner: Corner, a: Outcome, b: Outcome) -> Iterator[str]:
    if a.error is not None or b.error is not None:
        # Each framework has its own exception types. Two errors count as equal.
        if a.error is None or b.error is None:
            yield "error"
        return
    loss_a, loss_b = _array(a.loss), _array(b.loss)
    if loss_a.shape != loss_b.shape:
        yield "shape"
        return
    if _far(corner, loss_a, loss_b):
        yield "loss"
    if a.gradient is not None and b.gradient is not None:
        gradient_a, gradient_b = _array(a.gradient), _array(b.gradient)
        if gradient_a.shape != gradient_b.shape or _far(corner, gradient_a, gradient_b):
            yield "gradient"
    if corner.exact_dtype and a.dtype != b.dtype:
        yield "dtype"
    if corner.signed_zero and _signs_differ(loss_a, loss_b):
        yield "sign of zero"


def _array(values: Any) -> Any:
    return np.asarray(np.nan if values is None else values, np.float64)


def _far(corner: Corner, a: Any, b: Any) -> bool:
    form = FORMATS.get(corner.case.dtype, FORMATS["float32"])
    return bool((distance(a, b, form) > _ALIKE_ULP).any())


def _signs_differ(a: Any, b: Any) -> bool:
    return bool(((a == 0.0) & (b == 0.0) & (np.signbit(a) != np.signbit(b))).any())


# The equal call.


def _suggestions(a: Call, b: Call, kind: Target, available: Availability) -> Iterator[Suggestion]:
    yield _suggestion(a, b.native, kind, available)
    ours = None if b.native.is_xentx else _xentx_on(b.native, available)
    if ours is not None:
        yield _suggestion(a, ours, kind, available)


def _xentx_on(native: Native, available: Availability) -> Native | None:
    """Find xentx's record for the arrays of a native's framework, or None."""
    eager = [record for record in xentx_records() if not record.compiled]
    for record in eager:
        if record.framework == native.framework:
            return record
    # Keras's arrays are those of its backend.
    if available.problem(native) is None:
        runtime = runtime_of(native.framework)
        for record in eager:
            if available.problem(record) is None and runtime_of(record.framework) is runtime:
                return record
    return None


def _suggestion(a: Call, native: Native, kind: Target, available: Availability) -> Suggestion:
    try:
        plan = _plan.plan(a, native, kind)
    except _plan.NoPlanError as error:
        return Suggestion(loss=native.id, code="", reason=str(error), verification=None)
    problems = [available.problem(one) for one in (a.native, plan.native)]
    reason = next((f"not verified: {problem}" for problem in problems if problem is not None), "")
    verification: Verification | None = None
    if not reason:
        try:
            verification = _plan.verify(a, plan)
        except Exception as error:  # noqa: BLE001 -- what a native raises is a finding
            reason = f"not verified: {describe(error)}"
    return Suggestion(
        loss=plan.native.id, code=_plan.code(plan), reason=reason, verification=verification
    )
