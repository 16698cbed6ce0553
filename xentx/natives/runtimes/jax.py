"""JAX: autodiff by ``jax.vjp``, compiler ``jax.jit``."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentx._types import Array
from xentx.natives._runtime import Loss, LossAndGradient


class JaxRuntime:
    """jax.Array, in the configuration of the process."""

    def array(self, values: np.ndarray[Any, Any], dtype: str) -> Array:
        if dtype == "bfloat16":
            return jnp.asarray(values.astype(np.float32)).astype(jnp.bfloat16)
        # Through NumPy, so that 64 bits become 32 without a warning if x64 is off.
        return jnp.asarray(values.astype(dtype))

    def values(self, array: Array) -> np.ndarray[Any, Any]:
        values = np.asarray(array)
        return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)

    def dtype(self, array: Array) -> str:
        name: str = array.dtype.name
        return name

    def one_hot(self, indices: Array, classes: int, dtype: str, axis: int) -> Array:
        return jax.nn.one_hot(indices, classes, dtype=dtype, axis=axis)

    def configured(self, dtype: str) -> AbstractContextManager[Any]:
        if dtype != "float64":
            return nullcontext()
        # The switch has moved since the oldest supported version.
        home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
        context: AbstractContextManager[Any] = home.enable_x64(True)  # noqa: FBT003 -- the argument's name has changed
        return context

    def differentiate(self, loss: Loss, *, compiled: bool) -> LossAndGradient:
        def differentiated(logits: Array, target: Array) -> tuple[Array, Array | None]:
            if not jnp.issubdtype(logits.dtype, jnp.floating):
                return loss(logits, target), None
            value, pullback = jax.vjp(lambda logits: loss(logits, target), logits)
            return value, pullback(jnp.ones_like(value))[0]

        return jax.jit(differentiated) if compiled else differentiated

    def wait(self, array: Array) -> None:
        array.block_until_ready()


RUNTIME = JaxRuntime()
