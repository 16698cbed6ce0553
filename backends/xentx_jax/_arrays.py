"""JAX's implementation of `xentx._backend.Backend`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from xentx._backend import ArrayAPIBackend, Operation
from xentx._core._spec import LossSpec
from xentx_jax import _autodiff, _namespace

Array = jax.Array


class JAXBackend(ArrayAPIBackend):
    """jax.Array, concrete or traced."""

    name = "jax"

    def owns(self, value: object) -> bool:
        return isinstance(value, jax.Array)

    def array(self, value: Any, like: Array) -> Array:  # noqa: ARG002
        return jnp.asarray(value)

    def namespace(self, array: Array) -> Any:  # noqa: ARG002
        return _namespace

    def dtype_name(self, array: Array) -> str:
        return array.dtype.name

    def is_concrete(self, array: Array) -> bool:
        return not isinstance(array, jax.core.Tracer)

    def has_float64(self, array: Array) -> bool:  # noqa: ARG002
        return jnp.result_type(float) == jnp.float64

    def constant(self, array: Array) -> Array:
        return jax.lax.stop_gradient(array)

    def is_differentiated(self, array: Array) -> bool:
        return not self.is_concrete(array)

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = JAXBackend()
