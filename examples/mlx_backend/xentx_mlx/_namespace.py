"""mlx.core as an Array API namespace: what the core calls and MLX spells otherwise.

All else is MLX's own, which follows the standard.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

Array = Any


def __getattr__(name: str) -> Any:
    return getattr(mx, name)


def _anywhere(function: Callable[..., Array]) -> Callable[..., Array]:
    """Take the standard's ``device``: MLX's memory is one, and its streams say where to compute."""

    def create(*args: Any, device: None = None, **options: Any) -> Array:
        del device
        return function(*args, **options)

    return create


arange = _anywhere(mx.arange)
asarray = _anywhere(mx.asarray)
ones = _anywhere(mx.ones)
zeros = _anywhere(mx.zeros)


def astype(x: Array, dtype: mx.Dtype, /, *, copy: bool = True) -> Array:
    """Cast. MLX's arrays are values, so that one of `dtype` already is its own copy."""
    del copy
    return x.astype(dtype)


def sum(  # noqa: A001 -- the standard's name
    x: Array,
    /,
    *,
    axis: int | tuple[int, ...] | None = None,
    dtype: mx.Dtype | None = None,
    keepdims: bool = False,
) -> Array:
    """Add up, in another dtype if there is one."""
    return mx.sum(x if dtype is None else x.astype(dtype), axis, keepdims)


def _power_of_two(n: Array) -> Array:
    return mx.view((n.astype(mx.int32) + 127) << 23, mx.float32)


def exp(x: Array, /) -> Array:
    """Exponential. MLX's own of float32 on CPUs is off by up to 63 units in the last place."""
    if x.dtype != mx.float32:
        return mx.exp(x)
    n = mx.stop_gradient(mx.round(mx.clip(x, -104.0, 89.0) * math.log2(math.e)))
    rest = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, after Cody and Waite
    half = mx.floor(n / 2)  # two factors: the whole may be below the normal numbers
    return mx.exp(rest) * _power_of_two(half) * _power_of_two(n - half)
