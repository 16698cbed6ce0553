"""TensorFlow's implementation of `xentx._backend.Backend`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from xentx._backend import ArrayAPIBackend, Operation
from xentx._core._spec import LossSpec
from xentx._types import Array
from xentx_tensorflow import _autodiff, _private


class TensorFlowBackend(ArrayAPIBackend):
    """tf.Tensor, eager or symbolic, and tf.Variable."""

    name = "tensorflow"

    def owns(self, value: object) -> bool:
        return isinstance(value, tf.Tensor | tf.Variable)

    def array(self, value: Any, like: Array) -> Array:
        """Convert to a tensor. If `like` is a DTensor, replicate it over the mesh of `like`."""
        tensor = tf.convert_to_tensor(value)
        if _autodiff.is_dtensor(like) and not _autodiff.is_dtensor(tensor):
            dtensor = tf.experimental.dtensor
            mesh = dtensor.fetch_layout(like).mesh
            return dtensor.copy_to_mesh(tensor, dtensor.Layout.replicated(mesh, tensor.ndim))
        if tensor.shape.rank is None:
            msg = (
                "got a tensor of unknown rank; expected one whose rank is known when the function "
                "is traced (hint: tf.ensure_shape)"
            )
            raise ValueError(msg)
        return tensor

    def of_sizes(
        self, name: str, array: Array | None, like: Array, axes: Sequence[int]
    ) -> Array | None:
        """Check sizes that are unknown while tracing when the graph runs."""
        if array is None or tf.executing_eagerly():
            return array
        pairs = [(array.shape[i], like.shape[axis]) for i, axis in enumerate(axes)]
        if not any(None in pair for pair in pairs):
            return array
        given, full = tf.shape(array), tf.shape(like)
        wanted = tf.gather(full, list(axes))
        # TensorFlow prints brackets around each part.
        text = [f"{name}: got shape", given, "; expected", wanted, "beside an array of shape", full]
        fits = tf.reduce_all(given[: len(pairs)] == wanted)
        with tf.control_dependencies([tf.debugging.Assert(fits, text)]):
            return tf.identity(array)

    def namespace(self, array: Array) -> Any:  # noqa: ARG002
        return _autodiff.NAMESPACE

    def dtype_name(self, array: Array) -> str:
        name: str = array.dtype.name
        return name

    def is_concrete(self, array: Array) -> bool:
        return not (tf.is_symbolic_tensor(array) or _autodiff.is_dtensor(array))

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = np.asarray(array.numpy())
        return values

    def has_float64(self, array: Array) -> bool:  # noqa: ARG002
        return True

    def constant(self, array: Array) -> Array:
        return tf.stop_gradient(array)

    def is_differentiated(self, array: Array) -> bool:
        return _private.is_recorded(array) or _private.has_tangents([array])

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = TensorFlowBackend()
