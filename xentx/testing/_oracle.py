"""True values from `xentx.compare.truth`, and the errors that are allowed for each dtype."""

import functools

import ml_dtypes
import numpy as np

from xentx._types import Array
from xentx.compare.truth import (
    LONG,
    Truth,
    binary_cross_entropy,
    cross_entropy,
    kl_divergence,
    log_softmax,
    one_hot,
    softcap,
    times,
)

__all__ = [
    "DTYPES",
    "LONG",
    "Truth",
    "assert_within",
    "binary_cross_entropy",
    "cross_entropy",
    "epsilon",
    "kl_divergence",
    "limits",
    "log_softmax",
    "one_hot",
    "softcap",
    "times",
    "tiny",
    "ulps",
]

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@functools.cache
def limits(dtype: np.dtype) -> ml_dtypes.finfo:
    """Return eps, max, tiny and other limits of a dtype."""
    return ml_dtypes.finfo(dtype)


def epsilon(dtype: np.dtype) -> float:
    """Distance from 1 to the next larger number."""
    return float(limits(dtype).eps)


def tiny(dtype: np.dtype) -> float:
    """Smallest normal number. Compilers may flush smaller numbers to 0."""
    return float(limits(dtype).smallest_normal)


def ulps(actual: Array, truth: Array) -> Array:
    """Error in units in the last place of the dtype of `actual`."""
    truth = np.asarray(truth, LONG)
    floor = tiny(actual.dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(truth), LONG(floor))))
    error = np.abs(actual.astype(LONG) - truth)
    return (error / (np.exp2(exponent) * epsilon(actual.dtype))).astype(np.float64)


def assert_within(actual: Array, truth: Array, scale: Array, units: float) -> None:
    """Assert an error of at most `units`, and NaN exactly where the true value is NaN.

    A unit is the precision of the dtype of the computation, relative to `scale`. A result with a
    narrower dtype may be rounded once more.
    """
    truth, narrow = np.asarray(truth, LONG), actual.dtype.itemsize == 2
    computed = DTYPES["float32"] if narrow else actual.dtype
    with np.errstate(invalid="ignore", over="ignore"):
        # Frameworks may flush subnormal probabilities to 0: allow eight for each unit.
        allowed = units * (epsilon(computed) * np.asarray(scale, LONG) + 8 * tiny(computed))
        if narrow:
            # Half the distance between two neighbouring numbers, also between subnormal ones.
            exponent = np.floor(np.log2(np.maximum(np.abs(truth), tiny(actual.dtype))))
            allowed = allowed + 0.5001 * np.exp2(exponent) * epsilon(actual.dtype)
        # The result may be infinite if the true value is near the largest number of the dtype.
        largest = LONG(float(limits(actual.dtype).max))
        found = np.clip(actual.astype(LONG), -largest, largest)
        error = np.abs(found - np.clip(truth, -largest, largest))
    assert actual.shape == np.shape(truth)
    wrong = np.isnan(actual.astype(LONG)) != np.isnan(truth)
    assert not np.any(wrong), f"{actual[wrong]} where the true value is {truth[wrong]}"
    fine = (error <= allowed) | np.isnan(truth)
    if not np.all(fine):
        worst = np.where(fine, 0, error / allowed)
        at = np.unravel_index(np.argmax(worst), worst.shape)
        msg = f"{worst[at]} times the {units} units allowed at {at}: {actual[at]} for {truth[at]}"
        raise AssertionError(msg)
