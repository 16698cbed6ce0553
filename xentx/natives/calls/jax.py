"""JAX's log_softmax, followed by the gather and the reduction that its users write."""

import jax
import jax.numpy as jnp

from xentx._types import Array


def reduced(rows: Array, reduction: str) -> Array:
    """Reduce with JAX's own functions."""
    return {"none": lambda x: x, "mean": jnp.mean, "sum": jnp.sum}[reduction](rows)


def log_softmax_gather(
    logits: Array, target: Array, *, axis: int = -1, reduction: str = "none"
) -> Array:
    """``-log_softmax(x)[t]``."""
    log_probs = jax.nn.log_softmax(logits, axis=axis)
    at = jnp.expand_dims(target, axis)
    return reduced(-jnp.take_along_axis(log_probs, at, axis=axis).squeeze(axis), reduction)
