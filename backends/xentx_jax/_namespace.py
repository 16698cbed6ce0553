"""jax.numpy as the core's namespace, with functions for XLA that are not in the standard."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from xentx._types import Array
from xentx_jax._total import total as compensated_sum

__all__ = ["compensated_sum", "times_infinity"]


def times_infinity(x: Array, infinity: Array) -> Array:
    """``x infinity``, 0 for 0, linear in x: see `xentx._core._distribution`.

    XLA would combine products with constants into a product with infinity, which is NaN for 0. It
    does not combine them if the results are rounded in between.
    """
    bits = jnp.finfo(infinity.dtype)
    factor = jnp.where(infinity > 0, bits.max, -bits.max).astype(infinity.dtype)
    for _ in range(3):
        x = lax.reduce_precision(x * factor, exponent_bits=bits.nexp, mantissa_bits=2)
    return x


def take_along_axis(x: Array, indices: Array, /, *, axis: int) -> Array:
    """Take entries at indices that are in bounds, without JAX's check."""
    return jnp.take_along_axis(x, indices, axis=axis, mode="promise_in_bounds")


def is_split(x: Array, axis: int) -> bool:
    """Whether an axis is split over several devices by an explicit sharding.

    JAX does not gather along such an axis. With other shardings, XLA transfers only the rows.
    """
    sharding = getattr(getattr(x, "aval", None), "sharding", None)  # older versions have none
    spec = getattr(sharding, "spec", ())
    return axis < len(spec) and spec[axis] is not None


def __getattr__(name: str) -> Any:
    return getattr(jnp, name)
