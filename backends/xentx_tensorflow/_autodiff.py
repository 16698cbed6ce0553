"""The core's derivatives as a tf.custom_gradient, and what else those are made of."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from xentx._backend import Operation
from xentx._calls import in_places
from xentx._core._spec import LossSpec
from xentx._types import Array
from xentx_tensorflow import _namespace, _private

NAMESPACE = _namespace


def with_others(
    arrays: tuple[Array | None, ...], present: Sequence[Array]
) -> tuple[Array | None, ...]:
    """Put others in the places of the arrays that there are."""
    return in_places(present, (array is not None for array in arrays))


def is_dtensor(array: Array) -> bool:
    """Whether an array is an eager tensor whose parts may lie on several devices."""
    dtensor = _private.dtensor_in_use()
    return dtensor is not None and tf.executing_eagerly() and bool(dtensor.is_dtensor(array))


def is_watched(array: Array) -> bool:
    """Whether a tape may ask for the gradient by `array`, as a graph's caller always may."""
    if not array.dtype.is_floating:
        return False
    return not tf.executing_eagerly() or _private.is_recorded(tf.convert_to_tensor(array))


def is_one(cotangent: Array) -> bool:
    """Whether it is known to be 1, which it is for a loss that nothing follows."""
    return tf.executing_eagerly() and "CPU" in cotangent.device and float(cotangent) == 1.0


def unless_xla(
    own: Callable[[], Any], other: Callable[[], Any], devices: Sequence[str] = ("CPU", "GPU")
) -> Any:
    """Take the first on these devices, unless compiled by XLA, and the second anywhere else."""
    # Recording has no use within a custom gradient, and forward mode can't record such a choice.
    with _private.unrecorded():
        place = tf.raw_ops.DeviceIndex(device_names=list(devices))
        return tf.switch_case(place, dict.fromkeys(range(len(devices)), own), default=other)


def attach(operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]) -> Array:
    """Value of the operation, differentiable to any order, inside tf.function and out."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def attached(*present: Array) -> tuple[Array, Any]:
        value, residuals = operation.forward(NAMESPACE, spec, *with_others(arrays, present))

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def pullback(cotangent: Array, *present: Array) -> tuple[tuple[Array | None, ...], Any]:
            def second(*cotangents: Array) -> list[Array | None]:
                # Someone differentiates this gradient. The residuals were computed as constants,
                # so they are formed again from the logits, in operations that a tape sees.
                inputs = [cotangent, *present]
                with tf.GradientTape() as tape:
                    tape.watch([array for array in inputs if array.dtype.is_floating])
                    others = with_others(arrays, present)
                    _, residuals = operation.forward(NAMESPACE, spec, *others)
                    gradients = _pull(operation, spec, others, residuals, cotangent)
                return tape.gradient(gradients, inputs, output_gradients=list(cotangents))

            others = with_others(arrays, present)
            return _pull(operation, spec, others, residuals, cotangent), second

        def gradient(cotangent: Array) -> list[Array | None]:
            if tf.executing_eagerly():
                gradients = iter(pullback(cotangent, *present))
            else:
                # Graphs are differentiated again as they are. A SavedModel would not hold the
                # gradients of a custom gradient within this one.
                gradients = iter(_pull(operation, spec, arrays, residuals, cotangent))
            return [next(gradients) if a.dtype.is_floating else None for a in present]

        return value, gradient

    return attached(*(array for array in arrays if array is not None))


def _pull(
    operation: Operation,
    spec: LossSpec,
    arrays: tuple[Array | None, ...],
    residuals: tuple[Array, ...],
    cotangent: Array,
) -> tuple[Array, ...]:
    gradients = operation.pullback(NAMESPACE, spec, arrays, residuals, cotangent)
    return tuple(gradient for gradient in gradients if gradient is not None)
