"""Losses of ``hidden @ head.T + bias``, with only one tile of the logits at a time.

The loss is the cross-entropy, or the divergence from the logits of another last layer
(`Reference`).

There are two methods. Both compute chunks of rows:

- ``by_rows`` computes all classes of a chunk. An engine computes the losses of the chunk's logits
  and their gradient. The gradient is multiplied into those of hidden and head before the next
  chunk. This takes three matrix products, as many as without chunks. The head's gradient is
  accumulated in its own dtype, so this method is for operands of the compute dtype.
- ``by_classes`` computes a block of the classes at a time, in the outer loop. The states of the
  rows (`partials`) are combined over the blocks. Then the logits of each block are computed again,
  for its part of the gradient. This takes a fourth product, but only one block of the head's
  gradient is stored in float32 (and the gradient of hidden). It is for float16 and bfloat16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from xentx._core import cross_entropy
from xentx._core import partials as monoid
from xentx._core._distribution import distribution, kept
from xentx._core._softmax import sum_classes
from xentx._core._spec import LossSpec, is_given
from xentx._core.partials import Partials
from xentx._core.tiles import Tiles
from xentx._types import Array

# Logits, target, weight and the rows' cotangent -> the rows' losses and their gradient. Without a
# cotangent, the gradient is None.
Dense = Callable[[Array, Array, Array | None, Array | None], tuple[Array, Array | None]]


class Engine(NamedTuple):
    """Functions that compute tiles: the core's expressions, or a faster implementation.

    Parameters
    ----------
    rows
        Computes the dense problem of whole rows.
    state
        Computes the state of a block from its logits, target, weight and first class.
    gradient
        Computes the gradient with respect to the logits of a block from the state of all classes,
        the rows' cotangent, and these four. It may overwrite the logits.
    """

    rows: Dense
    state: Callable[[Array, Array, Array | None, Any], Partials[Array]]
    gradient: Callable[[Partials[Array], Array, Array, Array, Array | None, Any], Array]


class Reference(NamedTuple):
    """The last layer of a divergence's reference, in the compute dtype. It replaces a target."""

    hidden: Array
    head: Array
    bias: Array | None


# Hidden, head, bias, target and weight.
Arrays = tuple[Array, Array, Array | None, Any, Array | None]

# With respect to hidden, head and bias: which gradients are needed, and the gradients.
Needs = tuple[bool, bool, bool]
Gradients = tuple[Array | None, Array | None, Array | None]

# With this number of rows the products are near their full speed (benchmarks/products.py). With few
# classes more rows are needed, because of the overhead of the calls. With very many classes fewer
# rows are used, because of the memory.
ROWS = 512
LEAST_LOGITS, MOST_LOGITS = 1 << 23, 1 << 26
# A divergence needs the logits of both layers, and its expressions have many temporary arrays.
PAIRED_LOGITS, FEW_LOGITS = 1 << 22, 1 << 18
TILE_ROWS, TILE_CLASSES = 512, 4096


@dataclass(frozen=True, slots=True)
class Tiling:
    """The size of a tile.

    Parameters
    ----------
    rows, classes
        Numbers of rows and of classes. For ``by_rows``, all classes.
    by_classes
        Whether the method is ``by_classes``.
    """

    rows: int
    classes: int
    by_classes: bool


def portable(xp: Any, spec: LossSpec, rows: Dense) -> Engine:
    """Return an engine that computes blocks by the core's expressions."""

    def state(logits: Array, target: Array, weight: Array | None, first: Any) -> Partials[Array]:
        return monoid.partials(xp, spec, logits, target, weight, first)

    def gradient(known: Partials[Array], cotangent: Array, *block: Any) -> Array:
        return monoid.gradient(xp, spec, known, *block) * cotangent[:, None]

    return Engine(rows, state, gradient)


def tiling(
    count: int | None, classes: int, chunk: int | None, *, by_classes: bool, paired: bool = False
) -> Tiling:
    """Choose the tiles for `count` rows. `chunk` is the requested number of rows, or None.

    `paired` tells that each chunk has the logits of two layers.
    """
    rows = chunk
    if rows is None:
        rows = max(ROWS, LEAST_LOGITS // classes)
        most = PAIRED_LOGITS if paired else MOST_LOGITS
        rows = TILE_ROWS if by_classes else max(64, min(rows, most // classes))
        # The chunks have nearly equal sizes, because a small remainder is slow.
        if isinstance(count, int) and count:
            rows = math.ceil(count / math.ceil(count / rows))
    return Tiling(rows, min(classes, TILE_CLASSES) if by_classes else classes, by_classes)


def losses(tiles: Tiles, spec: LossSpec, tiling: Tiling, arrays: Arrays, engine: Engine) -> Array:
    """Return a loss for each row, in the compute dtype."""
    if tiling.by_classes:
        state = states(tiles, spec, tiling, arrays, engine)
        return tiles.xp.astype(monoid.finish(tiles.xp, state, spec.z_loss), spec.precision.compute)
    hidden, head, bias, target, weight = arrays
    bias = _cast(tiles, spec, bias)

    def step(start: Any, size: Any, rows: Array) -> Array:
        logits = tiles.logits(tiles.take(hidden, start, size), head, bias)
        chosen = _compared(tiles, target, start, size)
        loss, _ = engine.rows(logits, chosen, weight, None)
        return tiles.put(rows, start, loss)

    rows = tiles.zeros((tiles.count(hidden),), spec.precision.compute, hidden)
    return tiles.chunks(tiles.count(hidden), tiling.rows, step, rows)


def losses_and_gradients(
    tiles: Tiles,
    spec: LossSpec,
    tiling: Tiling,
    arrays: Arrays,
    cotangent: Array,
    engine: Engine,
    needs: Needs = (True, True, True),
) -> tuple[Array, Gradients]:
    """Return the rows' losses, and their cotangents pulled back to hidden, head and bias.

    Gradients that are not needed are None.
    """
    needs = (*needs[:2], needs[2] and arrays[2] is not None)
    if tiling.by_classes:
        state = states(tiles, spec, tiling, arrays, engine)
        gradients = gradients_of(tiles, spec, tiling, arrays, state, cotangent, engine, needs)
        rows = monoid.finish(tiles.xp, state, spec.z_loss)
        rows = tiles.xp.astype(rows, spec.precision.compute, copy=False)
    else:
        rows, gradients = _by_rows(tiles, spec, tiling, arrays, cotangent, engine, needs)
    by_hidden, by_head, by_bias = (
        None if gradient is None else tiles.xp.astype(gradient, array.dtype, copy=False)
        for gradient, array in zip(gradients, arrays[:3], strict=True)
    )
    return rows, (by_hidden, by_head, by_bias)


def amounts(tiles: Tiles, spec: LossSpec, tiling: Tiling, arrays: Arrays, reduction: str) -> Array:
    """Return what each row adds to the divisor of a mean, as `reduction.divisor` says."""
    xp, compute = tiles.xp, spec.precision.compute
    hidden, _, _, target, weight = arrays
    weighted = reduction == "weighted_mean"
    if not spec.soft:
        amount = xp.ones_like(target, dtype=compute)
        if weight is not None:
            # Rows with other indices are ignored, which the caller handles, or have a loss of NaN.
            known = xp.where((target >= 0) & (target < spec.classes), target, 0)
            amount = xp.take(weight, known, axis=0)
        if weighted and weight is not None and is_given(spec.label_smoothing):
            mean = xp.sum(weight, dtype=spec.precision.accumulate) / spec.classes
            mean = xp.astype(mean, compute, copy=False)
            amount = (1.0 - spec.label_smoothing) * amount + spec.label_smoothing * mean
        return amount

    def step(start: Any, size: Any, rows: Array) -> Array:
        q = distribution(xp, spec, tiles.take(target, start, size), _row(weight))
        return tiles.put(rows, start, xp.squeeze(sum_classes(xp, spec, q), axis=1))

    if not weighted:
        return xp.ones_like(hidden[:, 0], dtype=compute)
    rows = tiles.zeros((tiles.count(hidden),), compute, hidden)
    return tiles.chunks(tiles.count(hidden), tiling.rows, step, rows)


def by_target(
    tiles: Tiles, spec: LossSpec, tiling: Tiling, arrays: Arrays, cotangent: Array
) -> Array:
    """Pull the rows' cotangents back to class probabilities."""
    xp = tiles.xp
    hidden, head, bias, target, weight = arrays

    def step(start: Any, size: Any, gradient: Array) -> Array:
        logits = logits_of(tiles, spec, tiles.take(hidden, start, size), head, bias)
        inputs = (logits, tiles.take(target, start, size), _row(weight))
        _, residuals = cross_entropy.forward(xp, spec, *inputs)
        seed = tiles.take(cotangent, start, size)[:, None]
        needs = (False, True, False)
        _, block, _ = cross_entropy.pullback(xp, spec, inputs, residuals, seed, needs)
        return tiles.put(gradient, start, block)

    zeros = tiles.zeros((tiles.count(hidden), spec.classes), target.dtype, hidden)
    return tiles.chunks(tiles.count(hidden), tiling.rows, step, zeros)


def logits_of(
    tiles: Tiles, spec: LossSpec, hidden: Array, head: Array, bias: Array | None
) -> Array:
    """Compute whole rows of logits in the compute dtype."""
    hidden, head, bias = (_cast(tiles, spec, array) for array in (hidden, head, bias))
    return tiles.logits(hidden, head, bias)


def by_few_rows(tiles: Tiles, spec: LossSpec, dense: Dense) -> Dense:
    """Return a function that computes a dense problem a few rows at a time, with less memory."""

    def rows(logits: Array, target: Array, weight: Any, cotangent: Any) -> Any:
        count, size = tiles.count(logits), max(1, FEW_LOGITS // spec.classes)
        losses = tiles.zeros((count,), spec.precision.compute, logits)
        slopes = None
        if cotangent is not None:
            slopes = tiles.zeros((count, spec.classes), spec.precision.compute, logits)

        def step(start: Any, size: Any, carry: Any) -> Any:
            losses, slopes = carry
            x, y = (tiles.take(array, start, size) for array in (logits, target))
            seed = None if slopes is None else tiles.take(cotangent, start, size)
            loss, slope = dense(x, y, weight, seed)
            if slopes is not None:
                slopes = tiles.put(slopes, start, slope)
            return tiles.put(losses, start, loss), slopes

        return tiles.chunks(count, size, step, (losses, slopes))

    return rows


def _compared(tiles: Tiles, target: Any, start: Any, size: Any) -> Array:
    """Return the target of some rows, or the logits of the reference."""
    if isinstance(target, Reference):
        return tiles.logits(tiles.take(target.hidden, start, size), *target[1:])
    return tiles.take(target, start, size)


def _cast(tiles: Tiles, spec: LossSpec, array: Array | None) -> Array | None:
    """Return an array in the compute dtype."""
    if array is None:
        return None
    return tiles.xp.astype(array, spec.precision.compute, copy=False)


def _row(weight: Array | None) -> Array | None:
    return None if weight is None else weight[None, :]


def _by_rows(
    tiles: Tiles,
    spec: LossSpec,
    tiling: Tiling,
    arrays: Arrays,
    cotangent: Array,
    engine: Engine,
    needs: Needs,
) -> tuple[Array, Gradients]:
    xp, compute = tiles.xp, spec.precision.compute
    hidden, head, bias, target, weight = arrays
    bias = _cast(tiles, spec, bias)

    def step(start: Any, size: Any, carry: Any) -> Any:
        rows, by_hidden, by_head, by_bias = carry
        x = tiles.take(hidden, start, size)
        chosen = _compared(tiles, target, start, size)
        logits = tiles.logits(x, head, bias)
        loss, slope = engine.rows(logits, chosen, weight, tiles.take(cotangent, start, size))
        del logits
        rows = tiles.put(rows, start, loss)
        if by_hidden is not None:
            by_hidden = tiles.put(by_hidden, start, tiles.product(slope, head))
        if by_head is not None:
            by_head = tiles.add_product(by_head, slope, kept_rows(xp, spec, x, chosen))
        if by_bias is not None:
            by_bias = by_bias + xp.sum(slope, axis=0, dtype=by_bias.dtype)
        return rows, by_hidden, by_head, by_bias

    def zeros(i: int, shape: tuple[Any, ...], dtype: Any = compute) -> Array | None:
        return tiles.zeros(shape, dtype, hidden) if needs[i] else None

    count = tiles.count(hidden)
    carry = (
        tiles.zeros((count,), compute, hidden),
        zeros(0, (count, hidden.shape[1])),
        zeros(1, tuple(head.shape)),
        zeros(2, (spec.classes,), spec.precision.accumulate),
    )
    rows, *gradients = tiles.chunks(count, tiling.rows, step, carry)
    return rows, gradients


def gradients_of(
    tiles: Tiles,
    spec: LossSpec,
    tiling: Tiling,
    arrays: Arrays,
    state: Partials[Array],
    cotangent: Array,
    engine: Engine,
    needs: Needs,
) -> Gradients:
    """Pull the rows' cotangents back to hidden, head and bias, from the state of all classes.

    `head` may be a part of the classes that `state` covers. Then the gradient of hidden is the
    contribution of this part.
    """
    xp, compute = tiles.xp, spec.precision.compute
    hidden, head, *_ = arrays
    features = hidden.shape[1]

    def zeros(i: int, shape: tuple[Any, ...], dtype: Any) -> Array | None:
        return tiles.zeros(shape, dtype, hidden) if needs[i] else None

    def outer(first: Any, width: Any, carry: Any) -> Any:
        by_hidden, by_head, by_bias = carry
        block, tile = _block(tiles, spec, arrays, first, width)

        def inner(start: Any, size: Any, carry: Any) -> Any:
            by_hidden, by_block, by_shift = carry
            x, *operands = tile(start, size)
            known = Partials(*(tiles.take(field, start, size) for field in state))
            slope = engine.gradient(known, tiles.take(cotangent, start, size), *operands)
            if by_hidden is not None:
                by_hidden = tiles.add(by_hidden, start, tiles.product(slope, block))
            if by_block is not None:
                by_block = tiles.add_product(by_block, slope, x)
            if by_shift is not None:
                by_shift = by_shift + xp.sum(slope, axis=0, dtype=by_shift.dtype)
            return by_hidden, by_block, by_shift

        own = (
            by_hidden,
            zeros(1, (width, features), compute),
            zeros(2, (width,), spec.precision.accumulate),
        )
        by_hidden, by_block, by_shift = tiles.chunks(tiles.count(hidden), tiling.rows, inner, own)
        if by_head is not None:
            by_head = tiles.put(by_head, first, by_block)
        if by_bias is not None:
            by_bias = tiles.put(by_bias, first, by_shift)
        return by_hidden, by_head, by_bias

    carry = (
        zeros(0, (tiles.count(hidden), features), compute),
        zeros(1, tuple(head.shape), head.dtype),
        zeros(2, (head.shape[0],), compute),
    )
    gradients: Gradients = tiles.chunks(head.shape[0], tiling.classes, outer, carry)
    return gradients


def states(
    tiles: Tiles, spec: LossSpec, tiling: Tiling, arrays: Arrays, engine: Engine
) -> Partials[Array]:
    """Return the states of all rows, combined over blocks of the head's classes."""
    xp, (hidden, head, *_) = tiles.xp, arrays

    def outer(first: Any, width: Any, state: Partials[Array]) -> Partials[Array]:
        _, tile = _block(tiles, spec, arrays, first, width)

        def inner(start: Any, size: Any, state: Partials[Array]) -> Partials[Array]:
            _, *operands = tile(start, size)
            new = engine.state(*operands)
            old = Partials(*(tiles.take(field, start, size) for field in state))
            joined = monoid.combine(xp, old, new)
            return Partials(*(tiles.put(a, start, b) for a, b in zip(state, joined, strict=True)))

        return tiles.chunks(tiles.count(hidden), tiling.rows, inner, state)

    shape = (tiles.count(hidden),)
    # Each needs its own memory, because tiles are written to it.
    zeros = (tiles.zeros(shape, spec.precision.accumulate, hidden) for _ in Partials._fields)
    state = monoid.empty(xp, *zeros)
    return tiles.chunks(head.shape[0], tiling.classes, outer, state)


def _block(
    tiles: Tiles, spec: LossSpec, arrays: Arrays, first: Any, width: Any
) -> tuple[Array, Callable[[Any, Any], tuple[Any, ...]]]:
    """Return a block of the head, and a function that computes tiles of this block.

    A tile consists of the rows of hidden, with ignored rows set to 0, and the arguments of
    `partials` and `gradient`: logits, target, weights, and the first class of the block.
    """
    hidden, head, bias, target, weight = arrays
    block = _cast(tiles, spec, tiles.take(head, first, width))
    if bias is not None:
        bias = _cast(tiles, spec, tiles.take(bias, first, width))
    if weight is not None:
        weight = _row(tiles.take(weight, first, width))
    if spec.soft:
        target = tiles.take(target, first, width, axis=1)

    def tile(start: Any, size: Any) -> tuple[Any, ...]:
        x = _cast(tiles, spec, tiles.take(hidden, start, size))
        chosen = tiles.take(target, start, size)
        logits = tiles.logits(x, block, bias)
        kept = kept_rows(tiles.xp, spec, x, chosen)
        return kept, logits, chosen if spec.soft else chosen[:, None], weight, first

    return block, tile


def kept_rows(xp: Any, spec: LossSpec, hidden: Array, target: Array) -> Array:
    """Replace the ignored rows of a factor by 0, since a slope of 0 times NaN is NaN."""
    keep = kept(spec, target)
    if keep is None:
        return hidden
    if keep.ndim > 1:  # several class indices a row
        keep = xp.any(keep, axis=1)
    return xp.where(keep[:, None], hidden, xp.zeros((), dtype=hidden.dtype))
