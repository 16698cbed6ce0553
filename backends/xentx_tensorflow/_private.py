"""All private names of TensorFlow that xentx uses, and what happens without them.

- `record` and `forwardprop_util` tell what tapes and accumulators record. Without them the kernel
  is not used (`IS_COMPLETE` is False): the portable core computes all losses, gradients are always
  computed, and `linear_cross_entropy` does not support forward mode.
- `tf.vectorized_map` and jacobians call an unknown operator once for each element, with a warning.
  `register_converters` disables the warning. It needs `pfor`.
- ``tf.__internal__.get_enclosing_xla_context`` avoids a choice of the device in a graph that XLA
  compiles. Without it the graph contains the choice.
- ``skip_input_indices`` of an operation names the inputs that need no gradient. Without it all
  gradients are computed.
- DTensor's device tells whether DTensor is in use. Without it DTensors are not recognised.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from xentx._types import Array

try:
    from tensorflow.python.eager import forwardprop_util, record
except ImportError:
    forwardprop_util = record = None
try:
    from tensorflow.python.ops.parallel_for import pfor
except ImportError:
    pfor = None


IS_COMPLETE = record is not None and all(
    hasattr(record, name)
    for name in ("stop_recording", "should_record_backprop", "could_possibly_record")
)


def unrecorded() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which no tape records."""
    return record.stop_recording() if IS_COMPLETE else contextlib.nullcontext()


def is_recorded(array: Array) -> bool:
    """Whether a tape records operations on `array`."""
    return not IS_COMPLETE or bool(record.should_record_backprop([array]))


def is_anything_recorded() -> bool:
    """Whether there is an active tape."""
    return not IS_COMPLETE or bool(record.could_possibly_record())


def has_tangents(arrays: Sequence[Array]) -> bool:
    """Whether one of the arrays has a tangent in forward mode."""
    if not IS_COMPLETE or not record.could_possibly_record():
        return False
    return bool(forwardprop_util.pack_tangents(list(arrays)).indices)


def is_in_xla() -> bool:
    """Whether XLA is known to compile the traced function."""
    ask = getattr(getattr(tf, "__internal__", None), "get_enclosing_xla_context", None)
    return ask is not None and ask() is not None


def dtensor_in_use() -> Any:
    """Return tf.experimental.dtensor if it is in use, else None. It is not initialised here."""
    api = sys.modules.get("tensorflow.dtensor.python.api")
    in_use = getattr(api, "_dtensor_singleton", None) is not None
    return tf.experimental.dtensor if in_use else None


def skipped(op: Any) -> Sequence[int]:
    """Return the inputs of an operation that need no gradient, as far as TensorFlow knows."""
    return getattr(op, "skip_input_indices", None) or ()


def register_converters(
    one_by_one: Sequence[str], others: Mapping[str, Callable[[Any], Array]]
) -> None:
    """Let tf.vectorized_map call some operators for each element, and others only once."""
    fallback = getattr(pfor, "_fallback_converter", None)
    if fallback is None:
        return

    def unstacked(function: Callable[[Any], Array]) -> Callable[[Any], Any]:
        return lambda given: pfor.wrap(function(given), is_stacked=False)

    converters = dict.fromkeys(one_by_one, fallback)
    converters |= {name: unstacked(function) for name, function in others.items()}
    for name, converter in converters.items():
        with contextlib.suppress(AssertionError):  # TensorFlow has its own converter
            pfor.RegisterPFor(name)(converter)
