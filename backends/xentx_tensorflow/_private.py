"""All that xentx takes from TensorFlow's private modules, and what happens where it is gone.

- What tapes and accumulators do (`record`, `forwardprop_util`) has no public question. Without it
  the kernel is not used (`IS_COMPLETE` is False): every loss is the portable core's, gradients are
  formed whether or not a tape asks for them, and forward mode has no `linear_cross_entropy`.
- `tf.vectorized_map` and jacobians call an operator that they do not know once for each element,
  with a warning. `register_converters` says that this is meant. Without `pfor` the warning is back.
- ``tf.__internal__.get_enclosing_xla_context`` saves a choice in a graph that XLA compiles. Without
  it the graph has the choice.
- ``skip_input_indices`` of an operation whose gradient is asked for names what needs none. Without
  it all are formed.
- DTensor's device says whether DTensor is in use. Without it DTensors are taken for other tensors.
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
    """Context in which no tape keeps what is computed."""
    return record.stop_recording() if IS_COMPLETE else contextlib.nullcontext()


def is_recorded(array: Array) -> bool:
    """Whether a tape keeps what is computed from `array`."""
    return not IS_COMPLETE or bool(record.should_record_backprop([array]))


def is_anything_recorded() -> bool:
    """Whether there is a tape, of whatever tensors."""
    return not IS_COMPLETE or bool(record.could_possibly_record())


def has_tangents(arrays: Sequence[Array]) -> bool:
    """Whether an accumulator follows one of the arrays, in forward mode."""
    if not IS_COMPLETE or not record.could_possibly_record():
        return False
    return bool(forwardprop_util.pack_tangents(list(arrays)).indices)


def is_in_xla() -> bool:
    """Whether the function that is being traced is known to be compiled by XLA."""
    ask = getattr(getattr(tf, "__internal__", None), "get_enclosing_xla_context", None)
    return ask is not None and ask() is not None


def dtensor_in_use() -> Any:
    """Return tf.experimental.dtensor once it is in use, which this does not begin; else None."""
    api = sys.modules.get("tensorflow.dtensor.python.api")
    in_use = getattr(api, "_dtensor_singleton", None) is not None
    return tf.experimental.dtensor if in_use else None


def skipped(op: Any) -> Sequence[int]:
    """Return which inputs of an operation need no gradient, as far as TensorFlow says."""
    return getattr(op, "skip_input_indices", None) or ()


def register_converters(
    one_by_one: Sequence[str], others: Mapping[str, Callable[[Any], Array]]
) -> None:
    """Tell tf.vectorized_map to call some operators once an element, and others only once."""
    fallback = getattr(pfor, "_fallback_converter", None)
    if fallback is None:
        return

    def unstacked(function: Callable[[Any], Array]) -> Callable[[Any], Any]:
        return lambda given: pfor.wrap(function(given), is_stacked=False)

    converters = dict.fromkeys(one_by_one, fallback)
    converters |= {name: unstacked(function) for name, function in others.items()}
    for name, converter in converters.items():
        with contextlib.suppress(AssertionError):  # TensorFlow has got one of its own
            pfor.RegisterPFor(name)(converter)
