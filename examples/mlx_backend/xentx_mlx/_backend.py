"""The backend for MLX. It implements `xentx.extending.Backend`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import numpy as np

from xentx.extending import ArrayAPIBackend, LossSpec, Operation
from xentx_mlx import _namespace

Array = Any


class MLXBackend(ArrayAPIBackend):
    """Backend for mx.array."""

    name = "mlx"

    def owns(self, value: object) -> bool:
        return isinstance(value, mx.array)

    def array(self, value: Any, like: Array) -> Array:  # noqa: ARG002
        if self.owns(value):
            return value
        # Without the dtype, MLX converts float64 to float32.
        return mx.array(value, getattr(mx, value.dtype.name))

    def namespace(self, array: Array) -> Any:  # noqa: ARG002
        return _namespace

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def has_float64(self, array: Array) -> bool:  # noqa: ARG002
        # MLX has float64 on CPUs, but its exponential is only as accurate as in float32
        return False

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        """Compute `operation`, with xentx's pullback and jvp instead of MLX's autodiff.

        MLX would differentiate the formula of the value, and rounding errors would be larger.
        xentx's own derivatives are as accurate as its values.
        """
        given = [i for i, array in enumerate(arrays) if array is not None]

        def whole(present: Any) -> tuple[Array | None, ...]:
            # MLX passes a single array without a tuple
            present = (present,) if isinstance(present, mx.array) else present
            rest = iter(present)
            return tuple(None if array is None else next(rest) for array in arrays)

        @mx.custom_function
        def attached(*present: Array) -> Array:
            return operation.forward(_namespace, spec, *whole(present))[0]

        @attached.vjp
        def pullback(present: Any, cotangent: Array, value: Array) -> Any:  # noqa: ARG001
            inputs = whole(present)
            _, residuals = operation.forward(_namespace, spec, *inputs)
            gradients = operation.pullback(_namespace, spec, inputs, residuals, cotangent)
            # MLX needs a gradient for each input, also for indices.
            found = tuple(
                mx.zeros_like(inputs[i]) if gradients[i] is None else gradients[i] for i in given
            )
            return found if len(given) > 1 else found[0]

        @attached.jvp
        def jvp(present: Any, tangents: Any) -> Array:
            inputs = whole(present)
            _, residuals = operation.forward(_namespace, spec, *inputs)
            return operation.jvp(_namespace, spec, inputs, residuals, whole(tangents))

        return attached(*(arrays[i] for i in given))


BACKEND = MLXBackend()
