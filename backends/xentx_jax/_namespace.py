"""jax.numpy as the core's namespace, and two functions beyond the standard that XLA needs."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from xentx_jax._total import total as compensated_sum

__all__ = ["compensated_sum", "times_infinity"]

Array = Any


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


def __getattr__(name: str) -> Any:
    return getattr(jnp, name)
