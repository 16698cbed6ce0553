"""JAX's answers to the questions of `xentx._backend.Backend`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentx._backend import LinearAdapter, Memory, NativeAdapter, Operation
from xentx._core._spec import Spec
from xentx._native import KERNEL
from xentx_jax import _autodiff, _linear, _namespace, _native

Array = jax.Array


class JAXBackend:
    """jax.Array, concrete or traced."""

    name = "jax"
    native: NativeAdapter | None = None if KERNEL is None else _native
    linear: LinearAdapter | None = _linear
    memory: Memory | None = None

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

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def is_compiling(self) -> bool:
        return False

    def has_float64(self, array: Array) -> bool:  # noqa: ARG002
        return jnp.result_type(float) == jnp.float64

    def device(self, array: Array) -> Any:  # noqa: ARG002
        return None

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(self, operation: Operation, spec: Spec, arrays: tuple[Array | None, ...]) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = JAXBackend()
