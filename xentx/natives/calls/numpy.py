"""Losses for NumPy arrays: SciPy, scikit-learn, and the textbook formula."""

import numpy as np

from xentx._types import Array


def gathered(values: Array, target: Array, axis: int) -> Array:
    """Take the entry of each row's target class."""
    return np.take_along_axis(values, np.expand_dims(target, axis), axis=axis).squeeze(axis)


def reduced(rows: Array, reduction: str) -> Array:
    """Reduce with NumPy's own functions."""
    return {"none": lambda: rows, "mean": rows.mean, "sum": rows.sum}[reduction]()


def minus_one_hot(probabilities: Array, target: Array, reduction: str, axis: int) -> Array:
    """Subtract 1 at each row's target class."""
    gradient = probabilities.copy()
    at = np.expand_dims(target, axis)
    picked = np.take_along_axis(gradient, at, axis=axis)
    np.put_along_axis(gradient, at, picked - picked.dtype.type(1), axis=axis)
    return gradient / gradient.dtype.type(target.size) if reduction == "mean" else gradient


def naive(logits: Array, target: Array, *, axis: int = -1, reduction: str = "none") -> Array:
    """``-log(exp(x_t) / sum(exp(x)))``, the textbook formula."""
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return reduced(-np.log(gathered(probabilities, target, axis)), reduction)


def naive_gradient(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """Softmax minus one-hot."""
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return minus_one_hot(probabilities, target, reduction, axis)
