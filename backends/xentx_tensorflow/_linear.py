"""TensorFlow's `linear_cross_entropy`: tiles of its tensors, eager and in loops of a graph.

A reduced loss has its gradients formed beside its value where a tape watches a factor. Whatever
else is asked for, gradients by weights and derivatives of second order, is derived from the plain
expression, with all logits at once.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf

from xentx import _linear
from xentx._core.tiles import BLOCK, Tiles
from xentx._problem import Linear
from xentx_tensorflow import _autodiff

try:  # There is no public way to ask whether a tape watches.
    from tensorflow.python.eager import record
except ImportError:
    record = None

Array = Any
Arrays = tuple[Array | None, ...]
# Hidden, head, bias and target: the arrays whose gradients are formed with no tape.
FORMED = 4


class TensorFlowTiles(Tiles):
    """Tensors: eager ones of our own making are written to, others copied where they must be."""

    def loop(self, count: Any, step: Callable[[Any, Any], Any], carry: Any) -> Any:
        if isinstance(count, int) and (tf.executing_eagerly() or count <= 1):
            return super().loop(count, step, carry)
        leaves = tf.nest.flatten(carry)
        present = [i for i, leaf in enumerate(leaves) if leaf is not None]

        def body(i: Array, *values: Array) -> list[Array]:
            given = list(leaves)
            for place, value in zip(present, values, strict=True):
                given[place] = value
            found = tf.nest.flatten(step(i, tf.nest.pack_sequence_as(carry, given)))
            return [i + 1, *(found[place] for place in present)]

        start = [tf.constant(0), *(leaves[place] for place in present)]
        _, *values = tf.while_loop(
            lambda i, *_: i < count,
            body,
            start,
            parallel_iterations=1,
            maximum_iterations=count if isinstance(count, int) else None,  # XLA has to know
        )
        for place, value in zip(present, values, strict=True):
            leaves[place] = value
        return tf.nest.pack_sequence_as(carry, leaves)

    def count(self, x: Array) -> Any:
        return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]

    def zeros(self, shape: tuple[Any, ...], dtype: Any, like: Array) -> Array:  # noqa: ARG002
        if tf.executing_eagerly():
            # Memory of its own, which a constant's need not be.
            return tf.raw_ops.Empty(shape=list(shape), dtype=dtype, init=True)
        return tf.zeros(shape, dtype)

    def take(self, x: Array, start: Any, size: Any, axis: int = 0) -> Array:
        begin, extent = [0] * x.shape.rank, list(x.shape)
        extent = [-1 if n is None else n for n in extent]
        begin[axis], extent[axis] = start, size
        return tf.slice(x, begin, extent)

    def put(self, x: Array, start: Any, block: Array) -> Array:
        block = tf.cast(block, x.dtype)
        places = self._places(start, block)
        if tf.executing_eagerly():
            return tf.raw_ops.InplaceUpdate(x=x, i=places, v=block)
        return tf.tensor_scatter_nd_update(x, places[:, None], block)

    def add(self, x: Array, start: Any, block: Array) -> Array:
        places = self._places(start, block)
        if tf.executing_eagerly():
            return tf.raw_ops.InplaceAdd(x=x, i=places, v=block)
        return tf.tensor_scatter_nd_add(x, places[:, None], block)

    def logits(self, hidden: Array, head: Array, bias: Array | None) -> Array:
        product = tf.matmul(hidden, head, transpose_b=True)
        return product if bias is None else tf.nn.bias_add(product, bias)

    def product(self, slope: Array, head: Array) -> Array:
        return tf.matmul(slope, head)

    def add_product(self, x: Array, slope: Array, hidden: Array) -> Array:
        # Not in the default's loop, which in a graph would be one more for TensorFlow to run.
        classes, size = slope.shape[1], max(1, BLOCK // hidden.shape[1])
        for start in range(0, classes, size):
            block = self.take(slope, start, min(size, classes - start), axis=1)
            x = self.add(x, start, self.pull(block, hidden))
        return x

    def pull(self, slope: Array, hidden: Array) -> Array:
        return tf.matmul(slope, hidden, transpose_a=True)

    def _places(self, start: Any, block: Array) -> Array:
        return start + tf.range(self.count(block))


_TILES = TensorFlowTiles(_autodiff.NAMESPACE)


def tiles(array: Array) -> Tiles:  # noqa: ARG001
    """Return how tensors are taken by tiles."""
    return _TILES


def by_chunks(
    function: Callable[..., tuple[Array, ...]],
    size: int,  # noqa: ARG001
    mapped: tuple[Array, ...],
    whole: Arrays,
) -> tuple[Array, ...]:
    """``function(*mapped, *whole)``: a tape would keep all chunks."""
    return function(*mapped, *whole)


def solve_with_gradients(
    linear: Linear, arrays: Arrays, cotangent: Array | None, needs: Sequence[bool]
) -> tuple[Array, _linear.LinearGradients]:
    """Value and gradients, where nobody asks for their derivatives."""
    return _linear.solve_with_gradients(linear, arrays, cotangent, needs)


def attach(linear: Linear, arrays: Arrays) -> Array:
    """Value of the problem, differentiable by every array and to any order."""
    given = [i for i, array in enumerate(arrays) if array is not None]
    watched = [i for i in given if _is_watched(arrays[i])]
    if not watched:
        return _linear.solve(linear, arrays)
    needs = [i in watched for i in range(FORMED)]
    by_tape = any(i >= FORMED for i in watched)
    # Those of a soft target are formed in a pass of their own, for the cotangent.
    early = linear.is_early and not by_tape and not needs[-1]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def attached(*present: Array) -> tuple[Array, Any]:
        known = None
        with _unrecorded():
            if early:
                value, known = _linear.solve_with_gradients(
                    linear, _autodiff.with_others(arrays, present), None, needs
                )
            else:
                value = _linear.solve(linear, _autodiff.with_others(arrays, present))

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def pullback(cotangent: Array, *present: Array) -> tuple[tuple[Array, ...], Any]:
            def second(*cotangents: Array) -> list[Array | None]:
                inputs = [tf.identity(array) for array in (cotangent, *present)]
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    first = _by_tape(
                        linear, _autodiff.with_others(arrays, inputs[1:]), inputs[0], watched
                    )
                return tape.gradient(first, inputs, output_gradients=list(cotangents))

            found: Sequence[Array | None]
            if by_tape:
                found = _by_tape(linear, _autodiff.with_others(arrays, present), cotangent, watched)
            elif known is not None:
                found = [g if g is None else g * tf.cast(cotangent, g.dtype) for g in known]
            else:
                with _unrecorded():
                    _, found = _linear.solve_with_gradients(
                        linear, _autodiff.with_others(arrays, present), cotangent, needs
                    )
            return tuple(g for g in found if g is not None), second

        def gradient(cotangent: Array) -> list[Array | None]:
            found = dict(zip(watched, pullback(cotangent, *present), strict=True))
            return [found.get(i) for i in given]

        return value, gradient

    return attached(*(arrays[i] for i in given))


def _by_tape(
    linear: Linear, arrays: Arrays, cotangent: Array, wanted: Sequence[int]
) -> list[Array]:
    """Gradients of the plain expression by the wanted arrays."""
    given = [None if array is None else tf.identity(array) for array in arrays]
    sources = [given[i] for i in wanted]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        value = _linear.plain(linear, tuple(given))
    zero = tf.UnconnectedGradients.ZERO
    gradients: list[Array] = tape.gradient(
        value, sources, output_gradients=cotangent, unconnected_gradients=zero
    )
    return gradients


def _unrecorded() -> AbstractContextManager[Any]:
    """Context in which no tape keeps what is computed: here that would be every chunk's logits."""
    return nullcontext() if record is None else record.stop_recording()


def _is_watched(array: Array) -> bool:
    """Whether a tape may ask for the gradient by `array`, as a graph's caller always may."""
    if not array.dtype.is_floating:
        return False
    if record is None or not tf.executing_eagerly():
        return True
    return bool(record.should_record_backprop([tf.convert_to_tensor(array)]))
