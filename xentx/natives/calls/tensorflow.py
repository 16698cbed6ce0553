"""TensorFlow's losses.

Those of tf.nn return a loss for each row; reductions are what users write after them.
"""

import tensorflow as tf

from xentx._types import Array

_V1_REDUCTIONS = {
    "none": tf.compat.v1.losses.Reduction.NONE,
    "mean": tf.compat.v1.losses.Reduction.SUM_BY_NONZERO_WEIGHTS,
    "sum": tf.compat.v1.losses.Reduction.SUM,
    "weighted_mean": tf.compat.v1.losses.Reduction.MEAN,
}


def _reduced(rows: Array, reduction: str) -> Array:
    return {"none": tf.identity, "mean": tf.reduce_mean, "sum": tf.reduce_sum}[reduction](rows)


def softmax_cross_entropy_with_logits(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """Call tf.nn.softmax_cross_entropy_with_logits."""
    rows = tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=logits, axis=axis)
    return _reduced(rows, reduction)


def sparse_softmax_cross_entropy_with_logits(
    logits: Array, target: Array, *, reduction: str = "none"
) -> Array:
    """Call tf.nn.sparse_softmax_cross_entropy_with_logits."""
    rows = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)
    return _reduced(rows, reduction)


def sigmoid_cross_entropy_with_logits(
    logits: Array, target: Array, *, reduction: str = "none"
) -> Array:
    """Call tf.nn.sigmoid_cross_entropy_with_logits."""
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    return _reduced(losses, reduction)


def v1_sparse_softmax_cross_entropy(
    logits: Array, target: Array, *, sample_weight: Array | float = 1.0, reduction: str = "mean"
) -> Array:
    """Call tf.compat.v1.losses.sparse_softmax_cross_entropy."""
    return tf.compat.v1.losses.sparse_softmax_cross_entropy(
        target, logits, weights=sample_weight, reduction=_V1_REDUCTIONS[reduction]
    )


def v1_softmax_cross_entropy(
    logits: Array,
    target: Array,
    *,
    sample_weight: Array | float = 1.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:
    """Call tf.compat.v1.losses.softmax_cross_entropy."""
    return tf.compat.v1.losses.softmax_cross_entropy(
        target,
        logits,
        weights=sample_weight,
        label_smoothing=label_smoothing,
        reduction=_V1_REDUCTIONS[reduction],
    )
