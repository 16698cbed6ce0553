"""TensorFlow's ways into xentx, for `xentx.testing`: eager, and in tf.function."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xentx._types import Array
from xentx.testing import Route


class TensorFlow(Route):
    """Eager TensorFlow."""

    name = framework = "tensorflow"

    def array(self, value: Any) -> Array:
        return tf.constant(value)

    def numpy(self, value: Array) -> Any:
        return np.asarray(value.numpy())  # np.asarray alone fails on a 0-d bfloat16

    def differentiate(
        self, function: Callable[..., Array], variables: Sequence[Array], cotangent: Array | None
    ) -> tuple[Array, Sequence[Array]]:
        with tf.GradientTape() as tape:
            tape.watch(variables)
            value = function(*variables)
        return value, tape.gradient(value, variables, output_gradients=cotangent)


class TensorFlowFunction(TensorFlow):
    """TensorFlow in tf.function, whose AutoGraph has nothing to rewrite."""

    name = "tensorflow:function"
    traced = True

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return tf.function(function, autograph=False)


ROUTES = (TensorFlow, TensorFlowFunction)
