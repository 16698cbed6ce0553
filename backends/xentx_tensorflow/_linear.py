"""TensorFlow's `linear_cross_entropy`: tiles of its tensors, eager and in loops of a graph.

A reduced loss has its gradients formed beside its value where a tape watches a factor. Whatever
else is asked for is derived from the plain expression: gradients by weights a chunk at a time,
derivatives of second order with all logits at once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xentx import _linear
from xentx._calls import Linear
from xentx._core.tiles import BLOCK, Tiles
from xentx._types import Array
from xentx_tensorflow import _autodiff, _private

Arrays = tuple[Array | None, ...]
NumPyArray = np.ndarray[Any, Any]
# Hidden, head, bias and target: the arrays whose gradients are formed with no tape. The
# reference of a divergence takes the place of the target, and needs a tape.
FORMED = 4
NARROW = (tf.float16, tf.bfloat16)


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
        # Memory of its own, which a constant's need not be.
        return tf.raw_ops.Empty(shape=tf.stack(shape), dtype=dtype, init=True)

    def take(self, x: Array, start: Any, size: Any, axis: int = 0) -> Array:
        begin, extent = [0] * x.shape.rank, list(x.shape)
        extent = [-1 if n is None else n for n in extent]
        begin[axis], extent[axis] = start, size
        return tf.slice(x, begin, extent)

    def put(self, x: Array, start: Any, block: Array) -> Array:
        block = tf.cast(block, x.dtype)
        places = self._places(start, block)
        return self._written(
            x,
            lambda: tf.raw_ops.InplaceUpdate(x=x, i=places, v=block),
            lambda: tf.tensor_scatter_nd_update(x, places[:, None], block),
        )

    def add(self, x: Array, start: Any, block: Array) -> Array:
        places = self._places(start, block)
        return self._written(
            x,
            lambda: tf.raw_ops.InplaceAdd(x=x, i=places, v=block),
            lambda: tf.tensor_scatter_nd_add(x, places[:, None], block),
        )

    def logits(self, hidden: Array, head: Array, bias: Array | None) -> Array:
        product = tf.matmul(hidden, head, transpose_b=True)
        return product if bias is None else tf.nn.bias_add(product, bias)

    def product(self, slope: Array, head: Array) -> Array:
        return tf.matmul(slope, head)

    def add_product(self, x: Array, slope: Array, hidden: Array) -> Array:
        # Not in the default's loop, which in a graph would be one more for TensorFlow to run. It
        # adds row by row, so that it takes less time for few long ones.
        classes, features = x.shape
        together = math.gcd(classes, 256)
        size = together * max(1, BLOCK // max(1, together * features))
        x = tf.reshape(x, (classes // together, together * features))
        for start in range(0, classes, size):
            with tf.control_dependencies([x]):  # otherwise a graph computes all products first
                block = self.take(slope, start, min(size, classes - start), axis=1)
                product = self.pull(block, hidden)
            x = self.add(x, start // together, tf.reshape(product, (-1, together * features)))
        return tf.reshape(x, (classes, features))

    def pull(self, slope: Array, hidden: Array) -> Array:
        return tf.matmul(slope, hidden, transpose_a=True)

    def _written(
        self, x: Array, in_place: Callable[[], Array], copied: Callable[[], Array]
    ) -> Array:
        if tf.executing_eagerly():
            return in_place()
        # A graph does not order reads before writes. Vectors are the states of the rows, which are
        # read. Matrices are gradients, which are not read until they are complete.
        if x.shape.rank == 1:
            return copied()
        return _autodiff.unless_xla(in_place, copied)

    def _places(self, start: Any, block: Array) -> Array:
        return start + tf.range(self.count(block))


_TILES = TensorFlowTiles(_autodiff.NAMESPACE)


def tiles(array: Array) -> Tiles:  # noqa: ARG001
    """Return the tiles of tensors."""
    return _TILES


def view(array: Array) -> NumPyArray | None:
    """Return the memory of an eager tensor on the CPU. Narrow floats are copied to float32."""
    if not tf.executing_eagerly() or "CPU" not in array.device:
        return None
    return np.asarray(memoryview(tf.cast(array, tf.float32) if array.dtype in NARROW else array))


threads = tf.config.threading.get_intra_op_parallelism_threads


def by_chunks(
    function: Callable[..., tuple[Array, ...]],
    size: int,
    mapped: tuple[Array, ...],
    whole: Arrays,
) -> tuple[Array, ...]:
    """Join ``function(*chunks of mapped, *whole)``. Only the inputs are kept for the backward."""
    count, arrays = mapped[0].shape[0], (*mapped, *whole)
    given = [array for array in arrays if array is not None]
    if count is None or count <= size or _private.has_tangents(given):
        return function(*arrays)
    is_mapped = [i < len(mapped) for i, array in enumerate(arrays) if array is not None]
    places = [i for i, array in enumerate(given) if array.dtype.is_floating]

    def at_once(*present: Array) -> tuple[Array, ...]:
        return function(*_autodiff.with_others(arrays, present))

    def part(array: Array, start: int) -> Array:
        return array[start : start + size]

    def parts(present: Sequence[Array], start: int) -> list[Array]:
        pairs = zip(present, is_mapped, strict=True)
        return [part(array, start) if chunked else array for array, chunked in pairs]

    def solve(*present: Array) -> tuple[Array, ...]:
        chunks = _in_turn(range(0, count, size), lambda i: at_once(*parts(present, i)))
        return tuple(tf.concat(pieces, 0) for pieces in zip(*chunks, strict=True))

    def pull(cotangents: Sequence[Array], *present: Array) -> list[Array]:
        # Accumulated in at least float32, and rounded once to a narrower dtype.
        wide = [tf.cast(a, tf.float32) if a.dtype in NARROW else a for a in present]
        sums = {i: _TILES.zeros(wide[i].shape, wide[i].dtype, wide[i]) for i in places}

        def step(start: int) -> list[Array]:
            seeds = [part(cotangent, start) for cotangent in cotangents]
            found = _by_tape(at_once, parts(wide, start), seeds, places)
            for i, gradient in zip(places, found, strict=True):
                if gradient.shape.rank == 0:
                    sums[i] += gradient
                else:
                    sums[i] = _TILES.add(sums[i], start if is_mapped[i] else 0, gradient)
            return list(sums.values())

        _in_turn(range(0, count, size), step)
        return [tf.cast(gradient, present[i].dtype) for i, gradient in sums.items()]

    return _formed(solve, pull, at_once, given, places)


def solve_with_gradients(
    linear: Linear, arrays: Arrays, cotangent: Array | None, needs: Sequence[bool]
) -> tuple[Array, _linear.LinearGradients[Array]]:
    """Value and gradients, which are not differentiated."""
    return _linear.solve_with_gradients(linear, arrays, cotangent, needs)


def attach(linear: Linear, arrays: Arrays) -> Array:
    """Value of the problem, differentiable by every array and to any order."""
    present = [array for array in arrays if array is not None]
    # All logits at once: tiles of a DTensor would be gathered, and tiles do not support tangents.
    if _autodiff.is_dtensor(arrays[0]) or _private.has_tangents(present):
        return _linear.plain(linear, arrays)
    given = [i for i, array in enumerate(arrays) if array is not None]
    watched = [i for i in given if _autodiff.is_watched(arrays[i])]
    if not watched:
        return _linear.solve(linear, arrays)
    formed = FORMED - linear.has_reference
    needs = [i in watched and i < formed for i in range(FORMED)]
    others = [i for i in watched if i >= formed]
    # If a tape computes the gradients of weights, it computes the others too. In a graph they are
    # separate, because unused operations are removed.
    by_tape = others and tf.executing_eagerly()
    # The gradient of a soft target is computed in a separate pass, with the cotangent.
    early = linear.grads_in_forward and not by_tape and not needs[-1]
    known: list[Array | None] = []

    def solve(*present: Array) -> tuple[Array]:
        whole = _autodiff.with_others(arrays, present)
        if not early:
            return (_linear.solve(linear, whole),)
        value, known[:] = _linear.solve_with_gradients(linear, whole, None, needs)
        return (value,)

    def pull(cotangents: Sequence[Array], *present: Array) -> list[Array]:
        (cotangent,) = cotangents
        if by_tape:
            return _by_tape(plain, present, cotangents, places)
        found: Sequence[Array | None] = known
        if not early:
            whole = _autodiff.with_others(arrays, present)
            with _private.unrecorded():
                _, found = _linear.solve_with_gradients(linear, whole, cotangent, needs)
        elif not _autodiff.is_one(cotangent):
            found = [g if g is None else g * tf.cast(cotangent, g.dtype) for g in known]
        formed = [g for g in found if g is not None]
        return [*formed, *_by_tape(plain, present, cotangents, places[len(formed) :])]

    def plain(*present: Array) -> tuple[Array]:
        return (_linear.plain(linear, _autodiff.with_others(arrays, present)),)

    places = [given.index(i) for i in watched]
    (value,) = _formed(solve, pull, plain, [arrays[i] for i in given], places)
    return value


def _formed(
    solve: Callable[..., tuple[Array, ...]],
    pull: Callable[..., Sequence[Array]],
    plain: Callable[..., tuple[Array, ...]],
    arrays: Sequence[Array],
    places: Sequence[int],
) -> tuple[Array, ...]:
    """Return ``solve(*arrays)``, differentiable with respect to some of them and to any order.

    ``pull(cotangents of its floating results, *arrays)`` computes the gradients. Their derivatives
    are those of `plain`, which computes the same with operations that a tape records.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def formed(*arrays: Array) -> tuple[tuple[Array, ...], Any]:
        with _private.unrecorded():
            results = solve(*arrays)
        floating = [i for i, result in enumerate(results) if result.dtype.is_floating]

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def pullback(*operands: Array) -> tuple[tuple[Array, ...], Any]:
            def second(*cotangents: Array) -> list[Array | None]:
                inputs = [tf.identity(array) for array in operands]
                with tf.GradientTape() as tape:
                    tape.watch([array for array in inputs if array.dtype.is_floating])
                    first = _by_tape(
                        plain, inputs[len(floating) :], inputs[: len(floating)], places
                    )
                return tape.gradient(first, inputs, output_gradients=list(cotangents))

            found = pull(operands[: len(floating)], *operands[len(floating) :])
            return tuple(found), second

        def gradient(*cotangents: Array) -> list[Array | None]:
            seeds = (cotangents[i] for i in floating)
            found = dict(zip(places, pullback(*seeds, *arrays), strict=True))
            return [found.get(i) for i in range(len(arrays))]

        return results, gradient

    return formed(*arrays)


def _by_tape(
    plain: Callable[..., tuple[Array, ...]],
    arrays: Sequence[Array],
    cotangents: Sequence[Array],
    places: Sequence[int],
) -> list[Array]:
    """Gradients of `plain` with respect to the arrays at some places."""
    if not places:
        return []
    given = [tf.identity(array) for array in arrays]
    sources = [given[i] for i in places]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        results = [result for result in plain(*given) if result.dtype.is_floating]
    zero = tf.UnconnectedGradients.ZERO
    gradients: list[Array] = tape.gradient(
        results, sources, output_gradients=list(cotangents), unconnected_gradients=zero
    )
    return gradients


def _in_turn(
    starts: Iterable[int], step: Callable[[int], Sequence[Array]]
) -> list[Sequence[Array]]:
    """Run the steps in order, also in a graph, which would otherwise run them at once."""
    results: list[Sequence[Array]] = []
    for start in starts:
        with tf.control_dependencies([array for last in results[-1:] for array in last]):
            results.append(step(start))
    return results
