"""TensorFlow: autodiff by ``GradientTape``, compiler XLA by ``tf.function(jit_compile=True)``."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from xentx._types import Array
from xentx.natives._runtime import Loss, LossAndGradient


class TensorFlowRuntime:
    """tf.Tensor."""

    def array(self, values: np.ndarray[Any, Any], dtype: str) -> Array:
        if dtype == "bfloat16":
            return tf.cast(tf.constant(values.astype(np.float32)), tf.bfloat16)
        return tf.constant(values.astype(dtype))

    def values(self, array: Array) -> np.ndarray[Any, Any]:
        wide = tf.complex128 if array.dtype.is_complex else tf.float64
        values: np.ndarray[Any, Any] = tf.cast(array, wide).numpy()
        return values

    def dtype(self, array: Array) -> str:
        name: str = array.dtype.name
        return name

    def one_hot(self, indices: Array, classes: int, dtype: str, axis: int) -> Array:
        return tf.one_hot(indices, classes, dtype=dtype, axis=axis)

    def configured(self, dtype: str) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext()

    def differentiate(self, loss: Loss, *, compiled: bool) -> LossAndGradient:
        def differentiated(logits: Array, target: Array) -> tuple[Array, Array | None]:
            if not logits.dtype.is_floating:
                return loss(logits, target), None
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = loss(logits, target)
            return value, tape.gradient(value, logits)

        compile_ = tf.function(jit_compile=True, autograph=False)
        return compile_(differentiated) if compiled else differentiated

    def wait(self, array: Array) -> None:
        pass


RUNTIME = TensorFlowRuntime()
