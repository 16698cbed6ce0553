"""TensorFlow's answers to the questions of `xentx._backend.Backend`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from xentx._backend import LinearAdapter, Memory, NativeAdapter, Operation
from xentx._core._spec import Spec
from xentx._native import KERNEL
from xentx_tensorflow import _autodiff, _linear, _native

Array = Any


class TensorFlowBackend:
    """tf.Tensor, eager or symbolic, and tf.Variable."""

    name = "tensorflow"
    native: NativeAdapter | None = None if KERNEL is None else _native
    linear: LinearAdapter | None = _linear
    memory: Memory | None = None

    def owns(self, value: object) -> bool:
        return isinstance(value, tf.Tensor | tf.Variable)

    def array(self, value: Any, like: Array) -> Array:  # noqa: ARG002
        return tf.convert_to_tensor(value)

    def namespace(self, array: Array) -> Any:  # noqa: ARG002
        return _autodiff.NAMESPACE

    def dtype_name(self, array: Array) -> str:
        name: str = array.dtype.name
        return name

    def is_concrete(self, array: Array) -> bool:
        return not tf.is_symbolic_tensor(array)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = np.asarray(array.numpy())
        return values

    def is_compiling(self) -> bool:
        return False

    def has_float64(self, array: Array) -> bool:  # noqa: ARG002
        return True

    def device(self, array: Array) -> Any:  # noqa: ARG002
        return None

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(self, operation: Operation, spec: Spec, arrays: tuple[Array | None, ...]) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = TensorFlowBackend()
