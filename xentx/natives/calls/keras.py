"""Keras's losses: its classes, with logits and with probabilities, and its ops."""

from typing import Any

import keras

from xentx._types import Array

_REDUCTIONS = {
    "none": None,
    "mean": "sum_over_batch_size",
    "sum": "sum",
    "weighted_mean": "mean_with_sample_weight",
}


def _reduced(rows: Array, reduction: str) -> Array:
    choices = {"none": lambda x: x, "mean": keras.ops.mean, "sum": keras.ops.sum}
    return choices[reduction](rows)


def _sparse(
    target: Array,
    output: Array,
    *,
    reduction: str,
    ignore_index: int | None = None,
    sample_weight: Array | None = None,
    **options: Any,
) -> Array:
    loss = keras.losses.SparseCategoricalCrossentropy(
        ignore_class=ignore_index, reduction=_REDUCTIONS[reduction], **options
    )
    return loss(target, output, sample_weight=sample_weight)


def _categorical(
    target: Array,
    output: Array,
    *,
    reduction: str,
    sample_weight: Array | None = None,
    **options: Any,
) -> Array:
    loss = keras.losses.CategoricalCrossentropy(reduction=_REDUCTIONS[reduction], **options)
    return loss(target, output, sample_weight=sample_weight)


def _softmax(logits: Array, axis: int) -> Array:
    # Keras stores the logits on the result of its own softmax and would use them instead of the
    # probabilities. This measures probabilities from other sources, which have no stored logits.
    return keras.ops.exp(keras.ops.log_softmax(logits, axis=axis))


def sparse(logits: Array, target: Array, **options: Any) -> Array:
    """Call SparseCategoricalCrossentropy(from_logits=True)."""
    return _sparse(target, logits, from_logits=True, **options)


def sparse_dtype(logits: Array, target: Array, **options: Any) -> Array:
    """Call it with the dtype of the logits, in place of Keras's floatx."""
    dtype = keras.backend.standardize_dtype(logits.dtype)
    return _sparse(target, logits, from_logits=True, dtype=dtype, **options)


def sparse_probabilities(logits: Array, target: Array, **options: Any) -> Array:
    """Call SparseCategoricalCrossentropy() with the softmax of the logits."""
    return _sparse(target, _softmax(logits, -1), **options)


def sparse_mistaken(logits: Array, target: Array, **options: Any) -> Array:
    """Call SparseCategoricalCrossentropy() with logits, the common mistake."""
    return _sparse(target, logits, **options)


def categorical(logits: Array, target: Array, **options: Any) -> Array:
    """Call CategoricalCrossentropy(from_logits=True)."""
    return _categorical(target, logits, from_logits=True, **options)


def categorical_probabilities(
    logits: Array, target: Array, *, axis: int = -1, **options: Any
) -> Array:
    """Call CategoricalCrossentropy() with the softmax of the logits."""
    return _categorical(target, _softmax(logits, axis), axis=axis, **options)


def ops_sparse(logits: Array, target: Array, *, reduction: str = "none") -> Array:
    """Call keras.ops.sparse_categorical_crossentropy."""
    rows = keras.ops.sparse_categorical_crossentropy(target, logits, from_logits=True)
    return _reduced(rows, reduction)


def ops_categorical(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """Call keras.ops.categorical_crossentropy."""
    rows = keras.ops.categorical_crossentropy(target, logits, from_logits=True, axis=axis)
    return _reduced(rows, reduction)


def binary(logits: Array, target: Array, *, reduction: str, **options: Any) -> Array:
    """Call BinaryCrossentropy(from_logits=True) with an axis of length 1 for its mean."""
    loss = keras.losses.BinaryCrossentropy(
        from_logits=True, reduction=_REDUCTIONS[reduction], **options
    )
    return loss(keras.ops.expand_dims(target, -1), keras.ops.expand_dims(logits, -1))
