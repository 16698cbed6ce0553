"""Optax's losses.

They return a loss for each row; reductions are what users write after them.
"""

import optax

from xentx._types import Array
from xentx.natives.calls.jax import reduced


def softmax_cross_entropy(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """Call optax.softmax_cross_entropy."""
    return reduced(optax.softmax_cross_entropy(logits, target, axis=axis), reduction)


def softmax_cross_entropy_with_integer_labels(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """Call optax.softmax_cross_entropy_with_integer_labels."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, target, axis=axis)
    return reduced(rows, reduction)


def sigmoid_binary_cross_entropy(logits: Array, target: Array, *, reduction: str = "none") -> Array:
    """Call optax.sigmoid_binary_cross_entropy."""
    return reduced(optax.sigmoid_binary_cross_entropy(logits, target), reduction)


def safe_softmax_cross_entropy(logits: Array, target: Array, *, reduction: str = "none") -> Array:
    """Call optax.safe_softmax_cross_entropy."""
    return reduced(optax.safe_softmax_cross_entropy(logits, target), reduction)
