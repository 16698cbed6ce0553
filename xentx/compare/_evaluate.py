"""Measure one loss: on a regime relative to the true values, on a corner case against the rule."""

import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xentx.compare import truth
from xentx.compare._floats import FORMATS, Format, Yardstick, distance
from xentx.compare.case import Answer, Case, prepare
from xentx.compare.corners import RULES, Corner
from xentx.compare.report import (
    CornerReport,
    CornerResult,
    CornerVerdict,
    Difference,
    Errors,
    Measurement,
    Nested,
    Outcome,
    Verdict,
)
from xentx.natives import Native, runtime_of

Array = np.ndarray[Any, Any]

FEW = 160
"""Entries up to which arrays are kept in the report."""

LOSS_ULP = {"float16": 1.0, "bfloat16": 1.0, "float32": 4.0, "float64": 4.0}
"""Error of an accurate loss. The narrow dtypes are computed in float32 and rounded once."""

GRADIENT_ULP = {"float16": 1.0, "bfloat16": 1.0, "float32": 8.0, "float64": 8.0}
"""Error of an entry of an accurate gradient."""

CLOSE = 8.0
"""Absolute error of a close result, in eps times the larger of 1 and the true value. A loss that
subtracts rounded numbers of that size has such an error."""

ONE_BY_ONE = 200
"""Number of rows on which a loss without the reduction "none" is measured, with one call for each.
They are the rows with the smallest and the largest losses, where errors are largest."""

_TIMED_SECONDS = 0.1
_TIMED_CALLS = 5

DECIDED_BEFORE_TRACING = ("weights", "shapes", "dtypes")
"""Groups of corner cases that do not depend on the compiler: they are decided while tracing."""

OF_BAD_EXAMPLES = ("extremes", "infinities")
"""Groups of corner cases that show the faults of the bad examples."""

_CORNER_EPS = {"float16": 8.0, "bfloat16": 8.0, "float32": 64.0, "float64": 64.0}


def describe(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    # TensorFlow's messages begin with the operation and its device in double braces.
    text = re.sub(r"\{\{.*?\}\}\s*", "", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def nested(values: Array) -> Nested:
    """Return an array as nested tuples of Python numbers."""
    if values.ndim == 0:
        value = values.item()
        return float(value.real) if isinstance(value, complex) else value
    return tuple(nested(value) for value in values)


def few(values: Array | None, size: int) -> Nested | None:
    """Return an array for the report. None if `size`, that of the whole result, is large."""
    if values is None or size > FEW:
        return None
    return nested(np.asarray(values, np.float64) if values.dtype == np.longdouble else values)


class Availability:
    """Which losses are installed and importable. Each is checked once."""

    def __init__(self) -> None:
        self._problems: dict[str, str | None] = {}

    def problem(self, native: Native) -> str | None:
        """Return the reason why the native is not available, or None."""
        if native.id not in self._problems:
            self._problems[native.id] = native.missing() or self._import(native)
        return self._problems[native.id]

    @staticmethod
    def _import(native: Native) -> str | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runtime_of(native.framework)
                native.load()
                native.load_gradient()
            running = keras_backend()
        except Exception as error:  # noqa: BLE001 -- a broken installation fails in any way
            return f"fails to import: {describe(error)}"
        if native.backend not in (None, running):
            return f"needs a process with KERAS_BACKEND={native.backend}, not {running}"
        return None


class Unavailable(Availability):
    """An `Availability` in which no loss is available, for one reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._reason = reason

    def problem(self, native: Native) -> str | None:  # noqa: ARG002 -- the same for all
        """Return the reason."""
        return self._reason


def keras_backend() -> str | None:
    """Return the backend of Keras in this process. None if it is not imported."""
    keras = sys.modules.get("keras")
    return None if keras is None else keras.backend.backend()


@dataclass(frozen=True, slots=True)
class Truth:
    """A case with the true losses of its rows, and the true gradient of their sum.

    An entry of the gradient for a soft target is the difference of two numbers that may nearly
    cancel. Its error is measured in units of the larger of the entry and its target.
    """

    case: Case
    losses: Yardstick
    gradient: Yardstick

    @classmethod
    def of(cls, case: Case) -> "Truth":
        """Compute the true values of a case."""
        true = truth.OF_LOSS[case.loss](case.logits, case.target, **case.options, reduction="none")
        gradient = true.gradient
        at = None
        if case.kind == "probabilities":
            # The gradient of a binary loss has only one term if the target is 0 or 1.
            alone = case.loss == "binary_cross_entropy" and (case.target % 1.0 == 0.0)
            at = np.maximum(np.abs(gradient), np.where(alone, 0.0, np.abs(case.target)))
        form = FORMATS[case.dtype]
        return cls(case, Yardstick.of(true.value, form), Yardstick.of(gradient, form, at))


def errors(got: Array, against: Yardstick) -> tuple[Errors, bool]:
    """Compare results with the true values, and return whether all are close."""
    true, form = against.true, against.form
    if not true.size:
        return Errors(max_ulp=0.0, mean_ulp=0.0, max_absolute=0.0, zeros=0.0), True
    ulps, absolute = against.distance(got), against.absolute(got)
    with np.errstate(all="ignore"):
        near = absolute <= CLOSE * form.eps * np.maximum(1.0, np.abs(true))
    finite = absolute[np.isfinite(absolute)]
    found = Errors(
        max_ulp=float(ulps.max()),
        mean_ulp=float(ulps.mean()),
        max_absolute=float(finite.max()) if finite.size else 0.0,
        zeros=float(np.mean((got == 0.0) & (np.abs(against.rounded) >= form.tiny))),
    )
    return found, bool((near | (ulps <= CLOSE)).all())


def _rows_of(native: Native, true: Truth) -> Any:
    """Return the index of the rows on which a native is measured."""
    rows = len(true.case.logits)
    if "none" in native.reductions or rows <= ONE_BY_ONE:
        return slice(None)
    by_loss = np.argsort(true.losses.true)
    return np.sort(by_loss[np.arange(-ONE_BY_ONE // 2, ONE_BY_ONE // 2)])


def _answer_by_rows(
    native: Native, case: Case, rows: Any
) -> tuple[Callable[[], Any], Answer, Answer]:
    """Return the losses of these rows and the mean of all rows.

    If a native has no reduction "none", each row is computed by a call of its own.
    """
    if "none" in native.reductions:
        call, answer = prepare(native, case)
        got = answer()
        if got.loss.shape != case.logits.shape[:1]:
            msg = f"returned losses of shape {got.loss.shape} for {len(case.logits)} rows"
            raise ValueError(msg)
        gradient = None if got.gradient is None else got.gradient / max(len(got.loss), 1)
        return call, got, replace(got, loss=np.asarray(np.mean(got.loss)), gradient=gradient)
    whole = replace(case, reduction="mean")
    answers = [
        prepare(native, replace(whole, logits=logits[None], target=target[None]))[1]()
        for logits, target in zip(case.logits[rows], case.target[rows], strict=True)
    ]
    gradients = [answer.gradient for answer in answers if answer.gradient is not None]
    loss = np.asarray([answer.loss for answer in answers])
    gradient = np.concatenate(gradients) if gradients else None
    call, answer = prepare(native, whole)
    return call, Answer(loss, answers[0].dtype, gradient, case.dtype), answer()


def _seconds(call: Callable[[], Any]) -> float:
    best, spent = np.inf, 0.0
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        best, spent = min(best, elapsed), spent + elapsed
        if spent > _TIMED_SECONDS:
            break
    return float(best)


def blank(native: Native, verdict: Verdict, message: str) -> Measurement:
    """Make a measurement without figures, for the reason in `message`."""
    return Measurement(
        loss=native.id,
        verdict=verdict,
        message=message,
        mean=None,
        loss_errors=None,
        gradient_errors=None,
        gradient_norm=None,
        row_losses=None,
        row_gradients=None,
        seconds=None,
    )


def measure(native: Native, true: Truth, *, timed: bool = True) -> Measurement:
    """Measure an available native on a case with known true values."""
    case = true.case
    asked = replace(case, reduction="none" if "none" in native.reductions else "mean")
    refusal = asked.refusal(native)
    if refusal is None and case.dtype not in native.logits_dtypes:
        refusal = f"takes no {case.dtype}"
    if refusal is not None:
        return blank(native, "not applicable", refusal)
    rows = _rows_of(native, true)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call, answer, mean = _answer_by_rows(native, case, rows)
            seconds = _seconds(call) if timed else None
    except Exception as error:  # noqa: BLE001 -- errors of natives are results
        return blank(native, "error", describe(error))
    loss_errors, close = errors(answer.loss, true.losses.at(rows))
    accurate = loss_errors.max_ulp <= LOSS_ULP[case.dtype]
    gradient_errors = None
    if answer.gradient is not None:
        gradient_errors, gradient_close = errors(answer.gradient, true.gradient.at(rows))
        accurate = accurate and gradient_errors.max_ulp <= GRADIENT_ULP[case.dtype]
        close = close and gradient_close
    size = true.gradient.true.size
    return Measurement(
        loss=native.id,
        verdict="accurate" if accurate else "close" if close else "wrong",
        message=None,
        mean=float(mean.loss),
        loss_errors=loss_errors,
        gradient_errors=gradient_errors,
        gradient_norm=None if mean.gradient is None else float(np.linalg.norm(mean.gradient)),
        row_losses=few(answer.loss, size),
        row_gradients=few(answer.gradient, size),
        seconds=seconds,
    )


def expected(corner: Corner, *, traced: bool) -> tuple[Outcome, Answer | None]:
    """Compute the result by xentx's rule, for the report and for the comparison."""
    if corner.error is not None and not (traced and corner.by_value):
        rule = Outcome(error=corner.error, message=None, loss=None, dtype=None, gradient=None)
        return rule, None
    case = corner.case
    form = FORMATS[case.dtype]
    true = truth.OF_LOSS[case.loss](
        case.logits, case.target, **case.options, reduction=case.reduction
    )
    answer = Answer(form.round(true.value), case.dtype, form.round(true.gradient), case.dtype)
    return _outcome(answer), answer


def _outcome(answer: Answer) -> Outcome:
    return Outcome(
        error=None,
        message=None,
        loss=few(answer.loss, answer.loss.size),
        dtype=answer.dtype,
        gradient=None if answer.gradient is None else few(answer.gradient, answer.gradient.size),
    )


def _same(got: Array, wanted: Array, form: Format) -> bool:
    if got.shape != wanted.shape:
        return False
    return bool((distance(got, wanted, form) <= _CORNER_EPS[form.name]).all())


def _differences(corner: Corner, got: Answer, wanted: Answer) -> tuple[Difference, ...]:
    form = FORMATS[corner.case.dtype]
    shape = got.loss.shape != wanted.loss.shape
    zeros = not shape and (wanted.loss == 0.0) & (got.loss == 0.0)
    signs = zeros & (np.signbit(got.loss) != np.signbit(wanted.loss))
    found: dict[Difference, bool] = {
        "shape": shape,
        "loss": not shape and not _same(got.loss, wanted.loss, form),
        "gradient": got.gradient is not None
        and wanted.gradient is not None
        and not _same(got.gradient, wanted.gradient, form),
        "dtype": corner.exact_dtype and got.dtype != wanted.dtype,
        "sign of zero": corner.signed_zero and bool(np.any(signs)),
    }
    return tuple(name for name, differs in found.items() if differs)


def skip(native: Native, verdict: CornerVerdict, message: str) -> CornerResult:
    """Make a result without an outcome, for the reason in `message`."""
    return CornerResult(
        loss=native.id, verdict=verdict, differences=(), message=message, outcome=None
    )


def visit(native: Native, corner: Corner) -> CornerResult:
    """Run an available native on a corner case."""
    refusal = corner.case.refusal(native)
    if native.caveat and corner.group not in OF_BAD_EXAMPLES:
        refusal = "is a bad example"
    if native.compiled and corner.group in DECIDED_BEFORE_TRACING:
        refusal = "is decided before the compiler runs: see the loss without the compiler"
    if refusal is not None:
        return skip(native, "not applicable", refusal)
    _, wanted = expected(corner, traced=native.compiled)
    got: Answer | None = None
    differences: tuple[Difference, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = prepare(native, corner.case)[1]()
    except Exception as error:  # noqa: BLE001 -- errors of natives are results
        name, _, text = describe(error).partition(": ")
        outcome = Outcome(error=name, message=text, loss=None, dtype=None, gradient=None)
        if wanted is not None:
            differences = ("refuses",)
        elif native.is_xentx and name != corner.error:
            differences = ("error",)
    else:
        if native.is_xentx and got.logits_dtype != corner.case.dtype:
            return skip(
                native,
                "not applicable",
                f"{native.framework} made {got.logits_dtype} of the logits",
            )
        outcome = _outcome(got)
        differences = ("accepts",) if wanted is None else _differences(corner, got, wanted)
    return CornerResult(
        loss=native.id,
        verdict="deviates" if differences else "agrees",
        differences=differences,
        message=None,
        outcome=outcome,
    )


def corner_report(corner: Corner, results: tuple[CornerResult, ...]) -> CornerReport:
    """Make the report of a corner case from the results of the losses."""
    case = corner.case
    options = {name: _shown(value) for name, value in case.options.items()}
    return CornerReport(
        name=corner.name,
        group=corner.group,
        title=corner.title,
        logits=_shown(case.logits),
        target=_shown(case.target),
        options=options | {"reduction": repr(case.reduction)},
        logits_dtype=case.dtype,
        target_dtype=case.target_dtype,
        rule=RULES[corner.rule],
        expected=expected(corner, traced=False)[0],
        traced=expected(corner, traced=True)[0],
        results=results,
    )


def _shown(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    return np.array2string(value, separator=", ", threshold=24, edgeitems=2, max_line_width=10000)
