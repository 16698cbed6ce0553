"""Operators that pass TensorFlow's tensors to the CPU kernel, and their gradients.

In eager mode, an operator that is registered through TensorFlow's C API is called in microseconds.
A tape records it and calls its registered gradient. If a tape watches the logits, the operator
`XentxLossAndGradient` computes the loss and its gradient in one pass. Then `XentxLoss` is called
with both results as inputs. The tape records it as a loss of the logits. Its gradient function
returns the known gradient if the cotangent is 1.

In a graph, it is not known while tracing where it will run. It may be compiled by XLA, which does
not have the operators, or placed on another device. So the graph contains the operator and the
core, and TensorFlow's ``DeviceIndex`` selects one when the device is known. It is a constant then,
and the other branch is removed. TensorFlow's gradient of such a choice would pass all intermediate
results of both branches to the backward pass, in types that XLA lacks. Therefore the value and the
gradient are separate choices, joined by ``tf.custom_gradient``.

Derivatives that the kernel lacks, such as those with respect to weights and of second order, are
derived from the core's expression. They can be differentiated again.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from xentx import _calls, _evaluate
from xentx._calls import Kind, Problem
from xentx._core._spec import decode, encode
from xentx._core.per_row import REAL_FIELDS
from xentx._kernel_engine import INSTALL, KERNEL, NO_KERNEL
from xentx._types import Array
from xentx_tensorflow import _arrays, _autodiff, _private

Arrays = tuple[Any, ...]  # logits, target, weight, sample_weight, normalizer


# ---- the operators


def _path() -> Path | None:
    spec = importlib.util.find_spec("xentx_tensorflow")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = (Path(folder) / "_tensorflow_op.so" for folder in folders)
    return next((path for path in paths if path.exists()), None)


@functools.cache
def _load() -> tuple[Any, str | None]:
    """Load the operators, or return why they are not available."""
    version = f"TensorFlow {tf.__version__}"
    path = _path()
    if KERNEL is None:
        return None, NO_KERNEL
    if path is None:
        what = "this installation of xentx has no operators for TensorFlow"
        return None, f"{what} (hint: on Linux and macOS, {INSTALL})"
    if not _private.IS_COMPLETE:
        return None, f"{version} has no tensorflow.python.eager.record, which xentx's operators use"
    try:
        loaded = tf.load_op_library(str(path))
    except tf.errors.OpError as error:
        return None, f"{version} does not load xentx's operators: {error.message}"
    if not hasattr(loaded, "xentx_log_softmax_gradient"):
        return None, f"{version} lacks functions of the C API that xentx's operators call"
    # All frameworks of a process share one kernel and one pool of threads.
    ctypes.CDLL(str(path)).xentx_tensorflow_use(ctypes.c_void_p(KERNEL.run_address()))
    return loaded, None


def operators() -> Any:
    """Return the operators, or None."""
    return _load()[0]


def unusable() -> str | None:
    """Return why this TensorFlow cannot call the kernel, or None."""
    return _load()[1]


@functools.cache
def _limit_threads() -> None:
    """Use at most TensorFlow's number of threads, which is fixed once TensorFlow runs."""
    most = tf.config.threading.get_intra_op_parallelism_threads()
    if most:
        library = ctypes.CDLL(str(_path()))
        library.xentx_tensorflow_limit_threads(min(most, KERNEL.default_threads()))


_WEIGHTS = ("weight", "sample_weight", "normalizer")


def _options(kind: Kind, arrays: Arrays, *, strict: bool = False) -> str:
    """Return the options as text for `kernel/tensorflow_op.cpp` and `_problem_of`."""
    _, _, weight, sample_weight, normalizer = arrays
    given = (weight is not None, sample_weight is not None, normalizer is not None)
    options: str | None = kind.plans.get((given, strict))
    if options is None:
        own = dict(zip((*_WEIGHTS, "strict"), (*given, strict), strict=True))
        words = (encode(kind.spec), *(f"{name}=True" for name, wanted in own.items() if wanted))
        options = " ".join(words)
        kind.plans[given, strict] = options
    return options


def _present(arrays: Arrays) -> list[Array]:
    return [array for array in arrays if array is not None]


def _value(kind: Kind, arrays: Arrays, known: list[Array], options: str) -> Array:
    """Value by the kernel. For a reduced loss, value and gradient may be known."""
    logits, *others = _present(arrays)
    if not kind.operation.IS_ROWWISE:
        return operators().xentx_log_softmax(logits, options)
    target, *weights = others
    if kind.is_reduced:
        return operators().xentx_loss(logits, target, weights, known, options)
    losses = operators().xentx_row_losses(logits, target, weights, options)
    if not tf.executing_eagerly():
        # The operator cannot infer this shape, because its shape function has no attributes.
        axis = kind.spec.axis
        losses.set_shape(logits.shape[:axis] + logits.shape[axis + 1 :])
    return losses


def _value_and_gradient(arrays: Arrays, options: str) -> list[Array]:
    """Reduced loss and its gradient by the kernel."""
    logits, target, *weights = _present(arrays)
    return list(operators().xentx_loss_and_gradient(logits, target, weights, options))


def _stats(kind: Kind, arrays: Arrays, options: str) -> list[Array]:
    """Fields of RowStats by the kernel."""
    logits, target, *weights = _present(arrays)
    fields = list(operators().xentx_row_stats(logits, target, weights, options))
    if not tf.executing_eagerly():  # as `_value` does
        axis = kind.spec.axis
        for field in fields:
            field.set_shape(logits.shape[:axis] + logits.shape[axis + 1 :])
    return fields


def _gradient(
    present: Sequence[Array], cotangents: Sequence[Array], known: Sequence[Array], options: str
) -> Array:
    """Gradient by the kernel. The gradient for a cotangent of 1 may be known."""
    logits, *others = present
    cotangent, *more = cotangents
    if not others:
        return operators().xentx_log_softmax_gradient(logits, cotangent, options)
    target, *weights = others
    if more:
        return operators().xentx_row_stats_gradient(logits, target, weights, cotangents, options)
    return operators().xentx_loss_gradient(logits, target, weights, cotangent, known, options)


# ---- derivatives of the core's expression


def _values(kind: Kind, arrays: Arrays, cotangents: Sequence[Array]) -> list[Array]:
    """Value, or the fields of RowStats if there are several cotangents."""
    if len(cotangents) == 1:
        return [_evaluate.portable(kind, arrays)]
    return list(_evaluate.portable_row_stats(kind, arrays)[:REAL_FIELDS])


def _pull_back(
    kind: Kind, arrays: Arrays, cotangents: Sequence[Array], wanted: Sequence[int]
) -> list[Array | None]:
    """Pull cotangents of the values back to the wanted arrays."""
    # A tensor may be passed twice, and a tape cannot distinguish its two places.
    present = [tf.identity(array) for array in _present(arrays)]
    sources = [present[i] for i in wanted]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        values = _values(kind, _autodiff.with_others(arrays, present), cotangents)
    seeds = [tf.cast(seed, value.dtype) for seed, value in zip(cotangents, values, strict=True)]
    gradients: list[Array | None] = tape.gradient(values, sources, output_gradients=seeds)
    return gradients


def _pull_back_twice(
    kind: Kind,
    arrays: Arrays,
    cotangents: Sequence[Array],
    second: Array,
    wanted: Sequence[int],
) -> list[Array | None]:
    """Pull `second`, a cotangent of the gradient, back to the arrays and, last, `cotangents`."""
    present = _present(arrays)
    count = len(present)
    inputs = [tf.identity(array) for array in (*present, *cotangents)]
    sources = [inputs[i] for i in wanted]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        whole = _autodiff.with_others(arrays, inputs[:count])
        (gradient,) = _pull_back(kind, whole, inputs[count:], [0])
    gradients: list[Array | None] = tape.gradient(gradient, sources, output_gradients=second)
    return gradients


def _spread(
    count: int, places: Sequence[int], values: Sequence[Array | None]
) -> list[Array | None]:
    """Put gradients in their places among `count` inputs, and None in the others."""
    gradients: list[Array | None] = [None] * count
    for i, value in zip(places, values, strict=True):
        gradients[i] = value
    return gradients


# ---- eager: gradients of the operators


def _inputs(op: Any) -> tuple[list[Array], list[Array]]:
    """Separate an operator's arrays from its other inputs: a cotangent and known results."""
    softmax = op.type in {"XentxLogSoftmax", "XentxLogSoftmaxGradient"}
    count = 1 if softmax else 2 + sum(_given(op))
    inputs = list(op.inputs)
    return inputs[:count], inputs[count:]


def _given(op: Any) -> list[bool]:
    """Return which of the weights an operator has."""
    words = op.get_attr("options").decode().split()
    return [f"{name}=True" in words for name in _WEIGHTS]


def _problem_of(op: Any) -> Problem:
    """Rebuild the checked call from an operator's arguments."""
    (logits, *others), _ = _inputs(op)
    spec = _calls.spec_of(_arrays.BACKEND, logits, decode(op.get_attr("options").decode()))
    weights = _calls.in_places(others[1:], _given(op))
    target = others[0] if others else None
    return Problem(Kind(_arrays.BACKEND, spec), (logits, target, *weights))


def _wanted(op: Any, inputs: Sequence[Array]) -> list[int]:
    """Return the inputs that need a gradient, as far as TensorFlow knows."""
    skipped = _private.skipped(op)
    return [i for i, array in enumerate(inputs) if array.dtype.is_floating and i not in skipped]


@tf.RegisterGradient("XentxLoss")  # type: ignore[untyped-decorator]
@tf.RegisterGradient("XentxRowLosses")  # type: ignore[untyped-decorator]
@tf.RegisterGradient("XentxLogSoftmax")  # type: ignore[untyped-decorator]
def _of_value(op: Any, cotangent: Array) -> list[Array | None]:
    present, known = _inputs(op)
    return _pull_back_value(op, present, [cotangent], known[1:])


@tf.RegisterGradient("XentxRowStats")  # type: ignore[untyped-decorator]
def _of_stats(op: Any, *cotangents: Array | None) -> list[Array | None]:
    present, _ = _inputs(op)
    return _pull_back_value(op, present, _real(op.outputs, cotangents), [])


def _real(fields: Sequence[Array], cotangents: Sequence[Array | None]) -> list[Array]:
    """Return the cotangents of the differentiable fields of RowStats, with zeros for None."""
    pairs = zip(fields[:REAL_FIELDS], cotangents[:REAL_FIELDS], strict=True)
    return [tf.zeros_like(field) if seed is None else seed for field, seed in pairs]


def _pull_back_value(
    op: Any, present: list[Array], cotangents: list[Array], known: list[Array]
) -> list[Array | None]:
    wanted = _wanted(op, present)
    options = op.get_attr("options").decode()
    if wanted == [0] and tf.executing_eagerly():  # a training step in eager mode
        gradients: list[Array | None] = [_gradient(present, cotangents, known, options)]
        return _spread(len(op.inputs), wanted, gradients)
    kind, arrays = _problem_of(op)
    gradients = []
    if 0 in wanted:
        gradients.append(_pulled(kind, arrays, cotangents, known, options))
    if others := [i for i in wanted if i > 0]:
        gradients += _pull_back(kind, arrays, cotangents, others)
    return _spread(len(op.inputs), wanted, gradients)


@tf.RegisterGradient("XentxRowStatsGradient")  # type: ignore[untyped-decorator]
@tf.RegisterGradient("XentxLossGradient")  # type: ignore[untyped-decorator]
@tf.RegisterGradient("XentxLogSoftmaxGradient")  # type: ignore[untyped-decorator]
def _of_gradient(op: Any, second: Array) -> list[Array | None]:
    present, cotangents = _inputs(op)
    if op.type != "XentxRowStatsGradient":
        cotangents = cotangents[:1]  # known results follow
    wanted = _wanted(op, [*present, *cotangents])
    gradients = _pull_back_twice(*_problem_of(op), cotangents, second, wanted)
    return _spread(len(op.inputs), wanted, gradients)


@tf.RegisterGradient("XentxLossAndGradient")  # type: ignore[untyped-decorator]
def _of_both(op: Any, cotangent: Array, second: Array) -> list[Array | None]:
    # Only for tf.vectorized_map, which removes custom gradients from the graph.
    present, _ = _inputs(op)
    value, gradient = op.outputs
    gradients = _pull_back_value(op, present, [cotangent], [gradient])
    wanted = _wanted(op, present)
    twice = _pull_back_twice(*_problem_of(op), [tf.ones_like(value)], second, wanted)
    for i, more in zip(wanted, twice, strict=True):
        if more is not None:
            gradients[i] += more
    return gradients


def _differentiable(
    kind: Kind, arrays: Arrays, options: str, *, both: bool
) -> tuple[Array, list[Array]]:
    """Value that a tape records, and the gradient for a cotangent of 1 if it is computed."""
    known = _value_and_gradient(arrays, options) if both else []
    return _value(kind, arrays, known, options), known[1:]


# ---- graphs: gradients of a choice


def _either(kernel: Callable[[], Any], portable: Callable[[], Any]) -> Any:
    """Run the kernel if the device allows it, else the core."""
    return _autodiff.unless_xla(kernel, portable, ("CPU",))


def _by_core(kind: Kind, arrays: Arrays) -> list[Array]:
    """Value and gradient by the core, without recording."""
    logits = tf.identity(arrays[0])  # tf.gradients needs a tensor of the graph
    value = _evaluate.portable(kind, (logits, *arrays[1:]))
    return [value, *tf.gradients(value, logits)]


def _gradient_by_core(kind: Kind, arrays: Arrays, cotangents: Sequence[Array]) -> Array:
    """Gradient by the core, without recording."""
    logits = tf.identity(arrays[0])
    values = _values(kind, (logits, *arrays[1:]), cotangents)
    seeds = [tf.cast(seed, value.dtype) for seed, value in zip(cotangents, values, strict=True)]
    return tf.gradients(values, logits, seeds)[0]


def _traced(kind: Kind, arrays: Arrays, options: str, *, both: bool) -> tuple[Array, list[Array]]:
    """Do as `_differentiable` does, in a graph."""
    known: list[Array] = []

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def solved(*present: Array) -> tuple[Array, Any]:
        whole = _autodiff.with_others(arrays, present)
        if both:
            value, gradient = _either(
                lambda: _value_and_gradient(whole, options),
                lambda: _by_core(kind, whole),
            )
            known.append(gradient)
        else:
            value = _either(
                lambda: _value(kind, whole, [], options),
                lambda: _evaluate.portable(kind, whole),
            )

        def pull_back(cotangent: Array) -> list[Array | None]:
            return _pulled_to_all(kind, whole, [cotangent], known, options)

        return value, pull_back

    return solved(*_present(arrays)), known


def _traced_stats(kind: Kind, arrays: Arrays, options: str) -> tuple[Array, ...]:
    """Fields of RowStats in a graph."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def solved(*present: Array) -> tuple[tuple[Array, ...], Any]:
        whole = _autodiff.with_others(arrays, present)
        fields = _either(
            lambda: _stats(kind, whole, options),
            lambda: list(_evaluate.portable_row_stats(kind, whole)),
        )

        def pull_back(*cotangents: Array | None) -> list[Array | None]:
            return _pulled_to_all(kind, whole, _real(fields, cotangents), [], options)

        return tuple(fields), pull_back

    found: tuple[Array, ...] = solved(*_present(arrays))
    return found


def _pulled_to_all(
    kind: Kind, arrays: Arrays, cotangents: Sequence[Array], known: list[Array], options: str
) -> list[Array | None]:
    """Gradients by all arrays that there are, in a graph."""
    present = _present(arrays)
    wanted = [i for i, array in enumerate(present) if array.dtype.is_floating]
    gradients: list[Array | None] = [_pulled(kind, arrays, cotangents, known, options)]
    if wanted[1:]:  # TensorFlow removes those that nobody asks for
        gradients += _pull_back(kind, arrays, cotangents, wanted[1:])
    return _spread(len(present), wanted, gradients)


def _pulled(
    kind: Kind, arrays: Arrays, cotangents: Sequence[Array], known: list[Array], options: str
) -> Array:
    """Gradient by the logits, which TensorFlow can differentiate, eager or in a graph."""
    if tf.executing_eagerly():
        return _gradient(_present(arrays), cotangents, known, options)
    count = len(_present(arrays))

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def pulled(*inputs: Array) -> tuple[Array, Any]:
        present, seeds = inputs[:count], inputs[count:]
        whole = _autodiff.with_others(arrays, present)

        def pull_back(second: Array) -> list[Array | None]:
            wanted = [i for i, array in enumerate(inputs) if array.dtype.is_floating]
            gradients = _pull_back_twice(kind, whole, seeds, second, wanted)
            return _spread(len(inputs), wanted, gradients)

        gradient = _either(
            lambda: _gradient(present, seeds, known, options),
            lambda: _gradient_by_core(kind, whole, seeds),
        )
        return gradient, pull_back

    return pulled(*_present(arrays), *cotangents)


# ---- what `xentx._backend.EngineAdapter` asks for


def declines(array: Array) -> str | None:
    """Say why the kernel computes no loss of `array`; None where it does."""
    if tf.executing_eagerly():
        if array.device.startswith("/job:localhost/replica:0/task:0/device:CPU:"):
            return None
        return f"the tensor is on {array.device}; the CPU kernel takes those of this CPU"
    # What is known to be compiled by XLA needs no choice. Other processes of a cluster may be sent
    # a graph, and need not have loaded the operators. DTensor can't split what it doesn't know.
    names = [device.name for device in tf.config.list_logical_devices()]
    if not all(name.startswith(("/device:", "/job:localhost/")) for name in names):
        return "the graph may run in other processes, which need not have xentx's operators"
    if _private.dtensor_in_use() is not None:
        return "DTensor is in use, which can't split xentx's operators"
    if _private.is_in_xla():
        return "the function is compiled by XLA, which has no operator of xentx"
    return None


def _takes(arrays: Arrays) -> bool:
    """Whether these arrays go to the kernel."""
    if operators() is None or declines(arrays[0]) is not None:
        return False
    _limit_threads()
    # Forward mode runs gradient functions where no tape records what they do: the core's have none.
    return not _private.has_tangents(_present(arrays))


def solve(kind: Kind, arrays: Arrays) -> Array | None:
    """Value, which TensorFlow can differentiate to any order; None to decline."""
    if not _takes(arrays):
        return None
    if not tf.executing_eagerly():
        # A tape may be around the function that is being traced, where it watches other tensors.
        both = kind.is_reduced and _private.is_anything_recorded()
        return _traced(kind, arrays, _options(kind, arrays), both=both)[0]
    both = kind.is_reduced and _private.is_recorded(arrays[0])
    options = _options(kind, arrays, strict=True)
    try:
        return _differentiable(kind, arrays, options, both=both)[0]
    except tf.errors.InvalidArgumentError:
        return None  # the core says what is wrong with the target


def row_stats(kind: Kind, arrays: Arrays) -> tuple[Array, ...] | None:
    """Fields of RowStats, of which TensorFlow can differentiate the first four; None to decline."""
    if not _takes(arrays):
        return None
    if not tf.executing_eagerly():
        return _traced_stats(kind, arrays, _options(kind, arrays))
    try:
        return tuple(_stats(kind, arrays, _options(kind, arrays, strict=True)))
    except tf.errors.InvalidArgumentError:
        return None  # as in `solve`


def solve_with_gradient(
    kind: Kind,
    arrays: Arrays,
    cotangent: Array | None,
    *,
    overwrite: bool = False,  # noqa: ARG001 -- TensorFlow knows itself where nobody else reads them
) -> tuple[Array, Array] | None:
    """Value and gradient, both of which TensorFlow can differentiate; None to decline."""
    if not _takes(arrays):
        return None
    eager = tf.executing_eagerly()
    options = _options(kind, arrays, strict=eager)
    both = kind.is_reduced and cotangent is None
    try:
        if eager and both and not _private.is_anything_recorded():
            value, gradient = _value_and_gradient(arrays, options)
            return value, gradient
        form = _differentiable if eager else _traced
        value, known = form(kind, arrays, options, both=both)
    except tf.errors.InvalidArgumentError:
        return None
    seed = tf.ones_like(value) if cotangent is None else cotangent
    if not seed.dtype.is_floating:
        seed = tf.cast(seed, kind.spec.precision.compute)  # the operators take floats
    with tf.control_dependencies([value]):  # so that the logits may become the gradient
        return value, _pulled(kind, arrays, [seed], known, options)


def _device_index(given: Any) -> Array:
    # The same for all iterations, which TensorFlow doubts, since it may differ between runs.
    return tf.raw_ops.DeviceIndex(device_names=given.get_attr("device_names"))


# A SavedModel that holds the operators can be loaded once this module has been imported.
if operators() is not None:
    _NAMES = ("Loss", "LossAndGradient", "RowLosses", "LossGradient", "RowStats")
    _MORE = ("RowStatsGradient", "LogSoftmax", "LogSoftmaxGradient")
    _private.register_converters(
        [f"Xentx{name}" for name in (*_NAMES, *_MORE)],
        {"DeviceIndex": _device_index},
    )
