"""SciPy's log_softmax, followed by the gather that its users write."""

from scipy import special

from xentx._types import Array
from xentx.natives.calls import numpy as np_calls


def log_softmax_gather(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """``-log_softmax(x)[t]``."""
    log_probs = special.log_softmax(logits, axis=axis)
    return np_calls.reduced(-np_calls.gathered(log_probs, target, axis), reduction)


def log_softmax_gather_gradient(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """``softmax(x)`` minus one-hot."""
    return np_calls.minus_one_hot(special.softmax(logits, axis=axis), target, reduction, axis)
