"""Routes of MLX for `xentx.testing`: lazy evaluation, and mx.compile."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from xentx.testing import Route

Array = Any


class MLX(Route):
    """MLX with lazy evaluation."""

    name = framework = "mlx"
    dtypes = ("float16", "bfloat16", "float32")
    has_float64 = False

    def array(self, value: Any) -> Array:
        if value.dtype.name == "bfloat16":
            return mx.array(value.view(np.uint16)).view(mx.bfloat16)
        return mx.array(value, getattr(mx, value.dtype.name.replace("bool", "bool_")))

    def numpy(self, value: Array) -> Any:
        if value.dtype == mx.bfloat16:
            return np.asarray(value.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.asarray(value)

    def differentiate(
        self, function: Callable[..., Array], variables: Sequence[Array], cotangent: Array | None
    ) -> tuple[Array, Sequence[Array]]:
        if cotangent is None:
            cotangent = mx.ones_like(function(*variables))
        (value,), gradients = mx.vjp(function, list(variables), [cotangent])
        return value, gradients


class MLXCompiled(MLX):
    """MLX under mx.compile."""

    name = "mlx:compile"
    traced = True

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return mx.compile(function)


ROUTES = (MLX, MLXCompiled)
