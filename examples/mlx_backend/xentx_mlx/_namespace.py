"""mlx.core as an Array API namespace: the functions with different names or arguments in MLX.

The other functions are those of MLX, which follow the standard.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

Array = Any


def __getattr__(name: str) -> Any:
    return getattr(mx, name)


def _anywhere(function: Callable[..., Array]) -> Callable[..., Array]:
    """Accept the standard's ``device``.

    MLX's memory is shared, and its streams select the device.
    """

    def create(*args: Any, device: None = None, **options: Any) -> Array:
        del device
        return function(*args, **options)

    return create


arange = _anywhere(mx.arange)
asarray = _anywhere(mx.asarray)
ones = _anywhere(mx.ones)
zeros = _anywhere(mx.zeros)


def astype(x: Array, dtype: mx.Dtype, /, *, copy: bool = True) -> Array:
    """Cast. MLX's arrays are immutable, so `copy` makes no difference."""
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
    """Sum, computed in `dtype` if it is given."""
    return mx.sum(x if dtype is None else x.astype(dtype), axis, keepdims)


def _power_of_two(n: Array) -> Array:
    return mx.view((n.astype(mx.int32) + 127) << 23, mx.float32)


def exp(x: Array, /) -> Array:
    """Exponential. MLX's float32 exp on CPUs has errors of up to 63 units in the last place."""
    if x.dtype != mx.float32:
        return mx.exp(x)
    n = mx.stop_gradient(mx.round(mx.clip(x, -104.0, 89.0) * math.log2(math.e)))
    rest = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, after Cody and Waite
    half = mx.floor(n / 2)  # two factors, since the result may be subnormal
    return mx.exp(rest) * _power_of_two(half) * _power_of_two(n - half)
