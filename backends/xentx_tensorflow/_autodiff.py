"""The core's derivatives as a tf.custom_gradient, and helpers for it."""

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
    """Replace the given arrays."""
    return in_places(present, (array is not None for array in arrays))


def is_dtensor(array: Array) -> bool:
    """Whether an array is an eager DTensor."""
    dtensor = _private.dtensor_in_use()
    return dtensor is not None and tf.executing_eagerly() and bool(dtensor.is_dtensor(array))


def is_watched(array: Array) -> bool:
    """Whether a gradient with respect to `array` may be needed. In a graph, this is not known."""
    if not array.dtype.is_floating:
        return False
    return not tf.executing_eagerly() or _private.is_recorded(tf.convert_to_tensor(array))


def is_one(cotangent: Array) -> bool:
    """Whether a cotangent is known to be 1, as that of the final loss is."""
    return tf.executing_eagerly() and "CPU" in cotangent.device and float(cotangent) == 1.0


def unless_xla(
    own: Callable[[], Any], other: Callable[[], Any], devices: Sequence[str] = ("CPU", "GPU")
) -> Any:
    """Run `own` on these devices, except in XLA, and `other` elsewhere."""
    # Within a custom gradient nothing needs to be recorded, and forward mode cannot record this.
    with _private.unrecorded():
        place = tf.raw_ops.DeviceIndex(device_names=list(devices))
        return tf.switch_case(place, dict.fromkeys(range(len(devices)), own), default=other)


def attach(operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]) -> Array:
    """Value of the operation, differentiable to any order, also in tf.function."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def attached(*present: Array) -> tuple[Array, Any]:
        value, residuals = operation.forward(NAMESPACE, spec, *with_others(arrays, present))

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def pullback(cotangent: Array, *present: Array) -> tuple[tuple[Array | None, ...], Any]:
            def second(*cotangents: Array) -> list[Array | None]:
                # This gradient is differentiated. The residuals were computed as constants, so they
                # are computed again from the logits, with operations that a tape records.
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
                # Graphs can be differentiated again. A SavedModel would not contain the gradient of
                # a custom gradient within this one.
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
