"""The arguments of a loss without a framework, and the call of a loss with them."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from xentx.natives import LossAndGradient, Native, runtime_of
from xentx.natives.vocabulary import LossName, Target

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Arguments of a loss, in xentx's vocabulary.

    Parameters
    ----------
    logits
        Values that `dtype` can represent: float64, or integers, bools or complex numbers to test
        these dtypes.
    dtype
        Name of the logits' dtype in the framework.
    target
        Values that `target_dtype` can represent.
    target_dtype
        Name of the target's dtype in the framework.
    kind
        The kind of the target.
    loss
        The function of xentx.
    options
        Options by xentx's names. Arrays keep their NumPy dtype.
    reduction
        Reduction by xentx's name.
    encode
        Whether class indices are converted to one-hot rows for losses that take only probabilities.
    configure
        Whether the framework is configured for `dtype`, as JAX must be for float64.
    """

    logits: Array
    dtype: str = "float32"
    target: Array
    target_dtype: str = "int64"
    kind: Target = "indices"
    loss: LossName = "cross_entropy"
    options: Mapping[str, Any] = field(default_factory=dict)
    reduction: str = "none"
    encode: bool = True
    configure: bool = True

    @property
    def axis(self) -> int:
        """The given class axis, or the last axis."""
        axis: int = self.options.get("axis", -1)
        return axis

    def refusal(self, native: Native) -> str | None:
        """Return the reason why the native does not support this case, or None."""
        logits, classes = self.logits, self.logits.shape[self.axis] if self.logits.ndim else 0
        options = [name for name in self.options if name not in ("axis", *native.options)]
        moved = "axis" in self.options and "axis" not in native.options
        refusals = (
            (bool(options), f"has no {', '.join(options)}"),
            (
                moved and self.axis % logits.ndim != native.axis % logits.ndim,
                f"has no choice of class axis: {native.class_axis}",
            ),
            (self.reduction not in native.reductions, f"has no reduction {self.reduction!r}"),
            (
                self.kind == "probabilities" and self.kind not in native.targets,
                "takes class indices only",
            ),
            (
                native.max_classes is not None and classes > native.max_classes,
                f"is measured with at most {native.max_classes} classes",
            ),
            (
                native.finite_logits and not np.isfinite(logits).all(),
                "is measured with finite logits only",
            ),
        )
        return next((reason for refused, reason in refusals if refused), None)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a native.

    Parameters
    ----------
    loss
        The loss, in float64.
    dtype
        Name of the dtype of the returned loss.
    gradient
        The gradient of its sum with respect to the logits, or None.
    logits_dtype
        Name of the dtype that the framework gave the logits.
    """

    loss: Array
    dtype: str
    gradient: Array | None
    logits_dtype: str


Call = Callable[[], tuple[Any, Any]]


@lru_cache(maxsize=4096)
def _differentiated(native: Native, options: tuple[tuple[str, Any], ...]) -> LossAndGradient:
    # Cached, because compilers cache compiled code by function and shape.
    loss = partial(native.load(), **dict(options))
    return runtime_of(native.framework).differentiate(loss, compiled=native.compiled)


def prepare(native: Native, case: Case) -> tuple[Call, Callable[[], Answer]]:
    """Return two functions that call a native with a case.

    The first computes loss and gradient in the framework and waits for them, to measure the time.
    The second also returns the values. Both raise the errors of the native.
    """
    runtime = runtime_of(native.framework)
    context = partial(runtime.configured, case.dtype) if case.configure else nullcontext
    by_hand = native.load_gradient()
    with context():
        logits = runtime.array(case.logits, case.dtype)
        target = runtime.array(case.target, case.target_dtype)
        if case.kind not in native.targets and case.encode:
            classes = case.logits.shape[case.axis]
            target = runtime.one_hot(target, classes, case.dtype, case.axis)
        options = {
            name: runtime.array(value, value.dtype.name) if isinstance(value, np.ndarray) else value
            for name, value in case.options.items()
            if name in native.options
        }
        options["reduction"] = case.reduction
    try:
        differentiated = _differentiated(native, tuple(options.items()))
    except TypeError:  # arrays have no hash
        differentiated = _differentiated.__wrapped__(native, tuple(options.items()))

    def call() -> tuple[Any, Any]:
        with context():
            value, gradient = differentiated(logits, target)
            if by_hand is not None:
                gradient = by_hand(logits, target, **options)
            for array in (value, gradient):
                if array is not None:
                    runtime.wait(array)
        return value, gradient

    def answer() -> Answer:
        value, gradient = call()
        return Answer(
            runtime.values(value),
            runtime.dtype(value),
            None if gradient is None else runtime.values(gradient),
            runtime.dtype(logits),
        )

    return call, answer
