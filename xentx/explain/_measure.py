"""The numbers: each step in each framework's own arithmetic, its own losses, xentx's, the truth.

No framework is named here. What is computed "as written" goes through the Array API namespace that
xentx has for the framework's arrays, so one function serves all of them.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import xentx
from xentx import _registry
from xentx.compare import truth
from xentx.compare._evaluate import describe
from xentx.compare._floats import FORMATS
from xentx.compare.case import Answer, Case, prepare
from xentx.explain._explanation import LeftOut
from xentx.explain._ways import Ways
from xentx.natives import Native, runtime_of, xentx_records

Array = np.ndarray[Any, Any]


def _written(xp: Any, x: Any, hot: Any) -> dict[str, Any]:
    """Compute the textbook's quantities as they are written, for rows of logits."""

    def summed(terms: Any) -> Any:
        return xp.sum(terms, axis=-1, keepdims=True)

    zero, one = xp.zeros_like(x), xp.ones_like(x)
    e = xp.exp(x)
    total = summed(e)
    naive = e / total
    m = xp.max(x, axis=-1, keepdims=True)
    z = x - m
    shifted = xp.exp(z)
    shifted_total = summed(shifted)
    is_top = x == m
    ties = summed(xp.where(is_top, one, zero))
    rest = summed(xp.where(is_top, zero, shifted)) + (ties - xp.ones_like(ties))
    log_softmax = z - xp.log(shifted_total)
    picked = hot == one
    return {
        "exp": e,
        "total": total,
        "naive": naive,
        "naive loss": -xp.log(summed(xp.where(picked, naive, zero))),
        "max": m,
        "shifted": z,
        "shifted exp": shifted,
        "shifted total": shifted_total,
        "rest": rest,
        "log": xp.log(shifted_total),
        "log1p": xp.log1p(rest),
        "naive lse": xp.log(total),
        "lse": m + xp.log(shifted_total),
        "lse log1p": m + xp.log1p(rest),
        "log_softmax": log_softmax,
        "nll": -summed(xp.where(picked, log_softmax, zero)),
        "gradient": shifted / shifted_total - hot,
    }


@dataclass(frozen=True)
class Truth:
    """What is right for rows of logits, computed in more precision than any dtype has."""

    logits: Array
    target: Array

    @cached_property
    def log_probs(self) -> Array:
        """Log-softmax: the loss of each class, were it the target."""
        return -truth.log_softmax(self.logits.astype(truth.LONG))[0]

    @cached_property
    def _of_loss(self) -> truth.Truth:
        return truth.cross_entropy(self.logits, self.target, reduction="none")

    @property
    def losses(self) -> Array:
        """Loss of each row."""
        return self._of_loss.value

    @property
    def gradient(self) -> Array:
        """Gradient of their sum."""
        return self._of_loss.gradient

    @property
    def probs(self) -> Array:
        """Softmax."""
        return np.exp(self.log_probs)

    @property
    def rest(self) -> Array:
        """Sum of the shifted exponentials without the largest."""
        return np.expm1(-self.log_probs.max(axis=1, keepdims=True))

    @property
    def lse(self) -> Array:
        """Log-sum-exp."""
        return self.logits.max(axis=1, keepdims=True) - self.log_probs.max(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One framework's numbers, all as NumPy arrays of a row for each row of logits."""

    ways: Ways
    version: str
    written: Mapping[str, Array]
    """The textbook's quantities, by the names that `_written` gives them."""
    log_softmax: Array | None
    """Of the framework's own function."""
    two_steps: Answer | None
    one_step: Answer | None
    xentx_log_softmax: Array
    xentx_two_steps: Array
    xentx: Answer
    reduced: Mapping[tuple[str, str], Array]
    """Losses of all rows by native or function, and reduction."""
    left_out: tuple[LeftOut, ...]


def measure(ways: Ways, case: Case) -> Measured:
    """Compute everything in one framework.

    Parameters
    ----------
    ways
        What the framework has.
    case
        Rows of logits, with class indices.

    Raises
    ------
    ImportError
        If the framework can't be imported. One that is broken may raise anything.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows are what is to be seen
        return _measure(ways, case)


def _measure(ways: Ways, case: Case) -> Measured:
    runtime = runtime_of(ways.framework)
    left_out: list[LeftOut] = []
    record = next(r for r in xentx_records() if r.framework == ways.framework and not r.compiled)
    first, second = ways.natives()
    two_steps = _asked(first, case, left_out)
    one_step = None if second is None else _asked(second, case, left_out)
    wholes = {"xentx.cross_entropy": record} | ({second.id: second} if second and one_step else {})
    with runtime.configured(case.dtype):
        x = runtime.array(case.logits, case.dtype)
        t = runtime.array(case.target, case.target_dtype)
        hot = runtime.one_hot(t, case.logits.shape[1], case.dtype, -1)
        xp = _registry.require("logits", x).namespace(x)
        written = {name: runtime.values(array) for name, array in _written(xp, x, hot).items()}
        try:
            log_softmax = runtime.values(ways.function()(x))
        except Exception as error:  # noqa: BLE001 -- a native may be missing, or refuse the dtype
            left_out.append(LeftOut(name=ways.shown, reason=describe(error)))
            log_softmax = None
        ours = xentx.log_softmax(x)
        ours_two_steps = xentx.nll_loss(ours, t, reduction="none")
        return Measured(
            ways=ways,
            version=record.version() or "unknown",
            written=written,
            log_softmax=log_softmax,
            two_steps=two_steps,
            one_step=one_step,
            xentx_log_softmax=runtime.values(ours),
            xentx_two_steps=runtime.values(ours_two_steps),
            xentx=prepare(record, case)[1](),
            reduced={
                (name, reduction): prepare(native, replace(case, reduction=reduction))[
                    1
                ]().loss.reshape(1)
                for name, native in wholes.items()
                for reduction in ("sum", "mean")
            },
            left_out=tuple(left_out),
        )


def _asked(native: Native, case: Case, left_out: list[LeftOut]) -> Answer | None:
    reason = native.missing()
    if reason is None:
        try:
            return prepare(native, case)[1]()
        except Exception as error:  # noqa: BLE001 -- a native may refuse the dtype in any way
            reason = describe(error)
    left_out.append(LeftOut(name=native.id, reason=reason))
    return None


def overflow(dtype: str) -> float:
    """Logit above which exp is infinite in a dtype."""
    # The logarithm of the largest number and not of the halfway point after it: less than an ulp.
    return float(np.log(np.longdouble(FORMATS[dtype].max)))


def lost_gap(dtype: str) -> float:
    """Gap of two logits from which 1 plus the exponential of its negative rounds to 1."""
    return float(FORMATS[dtype].precision * np.log(2.0))
