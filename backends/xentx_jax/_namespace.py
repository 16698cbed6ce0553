"""jax.numpy as the core's namespace, and what XLA needs that is not in the standard."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from xentx._types import Array
from xentx_jax._total import total as compensated_sum

__all__ = ["compensated_sum", "times_infinity"]


def times_infinity(x: Array, infinity: Array) -> Array:
    """``x infinity``, 0 for 0, linear in x: see `xentx._core._distribution`.

    XLA would join products with constants into one with infinity, which is NaN for 0. It does not
    join what is rounded in between.
    """
    bits = jnp.finfo(infinity.dtype)
    factor = jnp.where(infinity > 0, bits.max, -bits.max).astype(infinity.dtype)
    for _ in range(3):
        x = lax.reduce_precision(x * factor, exponent_bits=bits.nexp, mantissa_bits=2)
    return x


def take_along_axis(x: Array, indices: Array, /, *, axis: int) -> Array:
    """Take entries at indices that are in bounds, of which JAX would make sure."""
    return jnp.take_along_axis(x, indices, axis=axis, mode="promise_in_bounds")


def is_split(x: Array, axis: int) -> bool:
    """Whether an axis lies in parts on several devices by an explicit sharding, as types tell it.

    JAX refuses to gather along such an axis. Of any other sharding XLA moves the rows alone.
    """
    sharding = getattr(getattr(x, "aval", None), "sharding", None)  # older versions have none
    spec = getattr(sharding, "spec", ())
    return axis < len(spec) and spec[axis] is not None


def __getattr__(name: str) -> Any:
    return getattr(jnp, name)
