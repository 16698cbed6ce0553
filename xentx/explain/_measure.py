"""The numbers: each step in each framework's arithmetic, its own losses, xentx, the true values.

No framework is named here. The formulas "as written" are computed in the Array API namespace of the
framework's arrays, so one function serves all frameworks.
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
    """Compute the textbook's quantities for rows of logits, without changing the formulas."""

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
    """The true values for rows of logits, computed in more precision than any dtype has."""

    logits: Array
    target: Array

    @cached_property
    def log_probs(self) -> Array:
        """Log-softmax."""
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
        """Sum of the shifted exponentials, without the largest one."""
        return np.expm1(-self.log_probs.max(axis=1, keepdims=True))

    @property
    def lse(self) -> Array:
        """Log-sum-exp."""
        return self.logits.max(axis=1, keepdims=True) - self.log_probs.max(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The numbers of one framework: NumPy arrays with a row for each row of logits."""

    ways: Ways
    version: str
    written: Mapping[str, Array]
    """The textbook's quantities, by the names of `_written`."""
    log_softmax: Array | None
    """The result of the framework's own function."""
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
        The framework and its functions.
    case
        Rows of logits, with class indices.

    Raises
    ------
    ImportError
        If the framework cannot be imported. A broken installation may raise any exception.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows are expected
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
        except Exception as error:  # noqa: BLE001 -- a native may be missing, or not support the dtype
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
        except Exception as error:  # noqa: BLE001 -- natives raise various errors
            reason = describe(error)
    left_out.append(LeftOut(name=native.id, reason=reason))
    return None


def overflow(dtype: str) -> float:
    """Logit above which exp is infinite in a dtype."""
    # exp rounds to infinity from the midpoint above the largest number on. The logarithm of the
    # midpoint differs by less than an ULP.
    return float(np.log(np.longdouble(FORMATS[dtype].max)))


def lost_gap(dtype: str) -> float:
    """Smallest gap of two logits for which 1 + exp(-gap) rounds to 1."""
    return float(FORMATS[dtype].precision * np.log(2.0))
