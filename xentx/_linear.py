"""Evaluate a loss of the last layer, tile by tile.

The algorithm is `xentx._core.linear`. The dense problem of a chunk of rows is computed by an engine
of the framework, such as the CPU kernel, or by the core.

The module ``_linear`` of an adapter has the tiles of its framework, and attaches the gradients that
are computed here to its autodiff. Second derivatives are computed from `plain`, an expression that
the framework differentiates itself, chunk by chunk if it supports recomputation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple

import numpy as np

from xentx import _calls, _evaluate, _kernel_blocks
from xentx._backend import Backend
from xentx._calls import Kind, Linear, LinearProblem, Problem
from xentx._core import linear as core
from xentx._core import reduction as reductions
from xentx._core._distribution import keep_rows
from xentx._core._spec import LossSpec, bound
from xentx._core.tiles import Tiles
from xentx._kernel_engine import KERNEL, takes
from xentx._types import Array, ArrayT

# The arrays of a `LinearProblem`.
Arrays = tuple[Any, ...]


class LinearGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of a loss of the last layer, each in the shape and dtype of its argument.

    Parameters
    ----------
    hidden, head : array
        Gradients with respect to `hidden` and `head`.
    bias : array or None
        Gradient with respect to the bias. None without a bias.
    target : array or None
        Gradient with respect to class probabilities. None for class indices, and for
        `xentx.linear_kl_divergence` and `xentx.linear_block_gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> function = xentx.value_and_grad(xentx.linear_cross_entropy)
    >>> value, gradients = function(np.ones((1, 2)), np.zeros((4, 2)), [0])
    >>> gradients.head[:2]
    array([[-0.75, -0.75],
           [ 0.25,  0.25]])
    """

    hidden: ArrayT
    head: ArrayT
    bias: ArrayT | None
    target: ArrayT | None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A problem in the form of the core, with the rows on one axis.

    Parameters
    ----------
    static
        The spec without arrays, which is hashable.
    spec, tiling
        Arguments of the core, with the values of options that are arrays.
    arrays
        Hidden, head, bias, target and weight.
    options
        The options that are arrays.
    sample_weight, divisor
        The factors of the rows' losses, and the divisor of a mean.
    chosen, places
        If ignored rows have been dropped: the indices of the remaining rows, and the place of each
        original row among them. The place of an ignored row is past the end. Otherwise None.
    """

    static: LossSpec
    spec: LossSpec
    tiling: core.Tiling
    arrays: core.Arrays
    options: tuple[Array, ...]
    sample_weight: Array | None
    divisor: Array | None
    chosen: Array | None = None
    places: Array | None = None


def value(problem: LinearProblem) -> Array:
    """Value of the problem, which the framework can differentiate."""
    linear, arrays = problem
    adapter = linear.backend.linear
    return solve(linear, arrays) if adapter is None else adapter.attach(linear, arrays)


def value_and_gradient(
    problem: LinearProblem, cotangent: Array | None
) -> tuple[Array, LinearGradients[Array]]:
    """Value of the problem, and the pullback of its cotangent (by default ones) to the operands."""
    linear, arrays = problem
    needs = (True, True, True, linear.kind.spec.soft and not linear.has_reference)
    adapter = linear.backend.linear
    evaluate = solve_with_gradients if adapter is None else adapter.solve_with_gradients
    return evaluate(linear, arrays, cotangent, needs)


def normalizer(problem: LinearProblem) -> Array:
    """Return the divisor of a mean, also if the reduction is not a mean."""
    linear, arrays = problem
    if linear.reduction not in ("mean", "weighted_mean"):
        linear = replace(linear, reduction="mean")
    with linear.backend.evaluating():
        return _prepare(linear, arrays, drop=False).divisor


def check_target(linear: Linear, arrays: Arrays) -> None:
    """Raise an IndexError for a concrete class index that is out of range."""
    backend, kind = linear.backend, linear.kind
    hidden, _, _, target, *_ = arrays
    if not kind.spec.soft and backend.is_concrete(target):
        _calls.indices(backend, target, hidden, kind.spec)


def solve(linear: Linear, arrays: Arrays) -> Array:
    """Value without autodiff."""
    with linear.backend.evaluating():
        prepared = _prepare(linear, arrays, drop=True)
        rows = core.losses(
            tiles_of(linear.backend, arrays[0]),
            prepared.spec,
            prepared.tiling,
            prepared.arrays,
            _engine(linear, prepared, arrays[0]),
        )
        return _finish(linear, prepared, rows)


def solve_with_gradients(
    linear: Linear,
    arrays: Arrays,
    cotangent: Array | None,
    needs: Sequence[bool],
) -> tuple[Array, LinearGradients[Array]]:
    """Value, and the gradients that are needed, without autodiff.

    They are the pullbacks of a cotangent (by default ones) to hidden, head, bias and a soft target.
    """
    backend = linear.backend
    with backend.evaluating():
        prepared = _prepare(linear, arrays, drop=True)
        spec, tiling = prepared.spec, prepared.tiling
        tiles = tiles_of(backend, arrays[0])
        seed = _seed(linear, prepared, tiles, cotangent)
        rows, found = core.losses_and_gradients(
            tiles,
            spec,
            tiling,
            prepared.arrays,
            seed,
            _engine(linear, prepared, arrays[0]),
            (needs[0], needs[1], needs[2]),
        )
        by_hidden, by_head, by_bias = (
            None if gradient is None else tiles.xp.astype(gradient, array.dtype, copy=False)
            for gradient, array in zip(found, arrays[:3], strict=True)
        )
        probabilities = None
        if needs[3]:
            probabilities = core.by_target(tiles, spec, tiling, prepared.arrays, seed)
            probabilities = _as_rows(linear, prepared, probabilities)
        if by_hidden is not None:
            by_hidden = _as_rows(linear, prepared, by_hidden)
        gradients = LinearGradients(by_hidden, by_head, by_bias, probabilities)
        return _finish(linear, prepared, rows), gradients


def plain(linear: Linear, arrays: Arrays) -> Array:
    """Value as an expression that the framework differentiates, chunk by chunk if possible."""
    with linear.backend.evaluating():
        prepared = _prepare(linear, arrays, drop=False)

        def losses(kind: Kind, *arrays: Array | None) -> tuple[Array, ...]:
            return (_evaluate.value(dense_problem(kind, *arrays)),)

        (rows,) = _of_chunks(linear, prepared, losses)
        return _finish(linear, prepared, rows)


def of_rows(
    linear: Linear, arrays: Arrays, function: Callable[..., tuple[Array, ...]]
) -> tuple[Array, ...]:
    """Apply ``function(kind, logits, target, weight, *options)`` to chunks, and join the parts."""
    prepared = _prepare(linear, arrays, drop=False)
    return tuple(_as_rows(linear, prepared, x) for x in _of_chunks(linear, prepared, function))


def _of_chunks(
    linear: Linear, prepared: _Prepared, function: Callable[..., tuple[Array, ...]]
) -> tuple[Array, ...]:
    hidden, head, bias, target, weight = prepared.arrays
    tiles = tiles_of(linear.backend, hidden)
    of_shape = _kinds(linear, prepared.static)
    other: tuple[Array | None, ...] = ()
    if linear.has_reference:
        target, *other = target

    def of_chunk(
        hidden: Array, target: Array, head: Array, bias: Array | None, *others: Array | None
    ) -> tuple[Array, ...]:
        if linear.has_reference:
            target = core.logits_of(tiles, prepared.static, target, *others[:2])
            others = others[2:]
        # An ignored row may contain NaN, and the product of NaN and a slope of 0 is NaN.
        hidden = core.kept_rows(tiles.xp, prepared.static, hidden, target)
        logits = core.logits_of(tiles, prepared.static, hidden, head, bias)
        return function(of_shape(logits), logits, target, *others)

    size, whole = prepared.tiling.rows, (head, bias, *other, weight, *prepared.options)
    if linear.backend.linear is None:
        return by_chunks(tiles, of_chunk, size, (hidden, target), whole)
    return linear.backend.linear.by_chunks(of_chunk, size, (hidden, target), whole)


def by_chunks(
    tiles: Tiles,
    function: Callable[..., tuple[Array, ...]],
    size: int,
    mapped: tuple[Array, ...],
    whole: tuple[Array | None, ...],
) -> tuple[Array, ...]:
    """Join ``function(*chunks of mapped, *whole)``."""
    count = mapped[0].shape[0]
    if count <= size:
        return function(*mapped, *whole)
    chunks = []
    for start in range(0, count, size):
        parts = (tiles.take(array, start, min(size, count - start)) for array in mapped)
        chunks.append(function(*parts, *whole))
    return tuple(tiles.xp.concat(parts) for parts in zip(*chunks, strict=True))


def tiles_of(backend: Backend, array: Array) -> Tiles:
    """Return the tiles of arrays like this one."""
    adapter = backend.linear
    return Tiles(backend.namespace(array)) if adapter is None else adapter.tiles(array)


def _engine(linear: Linear, prepared: _Prepared, hidden: Array) -> core.Engine:
    """Return the engine for tiles: the kernel if it is available, else the core."""
    backend, spec = linear.backend, prepared.spec
    portable = core.portable(backend.namespace(hidden), spec, _dense(linear, prepared, hidden))
    # The kernel supports the dtype that the target has here.
    if KERNEL is None or not linear.by_classes or not takes(prepared.static, None, True):  # noqa: FBT003
        return portable
    adapter = backend.linear
    if adapter is None:
        return _kernel_blocks.engine(spec, portable, numpy_view, backend.array, 0)
    return _kernel_blocks.engine(spec, portable, adapter.view, backend.array, adapter.threads())


def numpy_view(array: Array) -> Array | None:
    """Return NumPy arrays unchanged. None for others, whose memory is not accessible."""
    return array if isinstance(array, np.ndarray) else None


def dense_problem(
    kind: Kind, logits: Array, target: Array, weight: Array | None, *options: Array
) -> Problem:
    """Make the problem of a chunk's logits."""
    return Problem(kind, (logits, target, weight, None, None, *options))


def _dense(linear: Linear, prepared: _Prepared, hidden: Array) -> core.Dense:
    """Return the function that computes the losses of a chunk of rows, and their gradient."""
    of_shape = _kinds(linear, prepared.static)

    def dense(
        logits: Array, target: Array, weight: Array | None, cotangent: Array | None
    ) -> tuple[Array, Array | None]:
        problem = dense_problem(of_shape(logits), logits, target, weight, *prepared.options)
        if cotangent is None:
            return _evaluate.value(problem), None
        return _evaluate.value_and_gradient(problem, cotangent, overwrite=True)

    if linear.has_reference:
        return core.by_few_rows(tiles_of(linear.backend, hidden), prepared.spec, dense)
    return dense


def _kinds(linear: Linear, spec: LossSpec) -> Callable[[Array], Kind]:
    """Return a function that finds the kind of a chunk. Each shape has its own cache of plans."""
    known: dict[tuple[int | None, ...], Kind] = {}

    def of_shape(logits: Array) -> Kind:
        shape = _calls.shape_of(logits)
        if shape not in known:
            known[shape] = replace(linear.kind, spec=spec)
        return known[shape]

    return of_shape


def tiling_of(linear: Linear, hidden: Array, *, by_classes: bool) -> core.Tiling:
    """Choose the sizes of the tiles for the rows of `hidden`."""
    rows, classes = hidden.shape[0], linear.kind.spec.classes
    if linear.chunk is None and hasattr(hidden, "chunks"):
        # Dask and Cubed have chunks of their own, which they compute one by one.
        return core.Tiling(max(1, rows), classes, by_classes)
    return core.tiling(
        rows,
        classes,
        linear.chunk,
        by_classes=by_classes,
        paired=linear.has_reference,
    )


def _prepare(linear: Linear, arrays: Arrays, *, drop: bool) -> _Prepared:
    backend, spec = linear.backend, linear.kind.spec
    hidden, head, bias, target, weight, sample_weight, normalizer, other_bias, *options = arrays
    tiles = tiles_of(backend, hidden)
    xp, compute = tiles.xp, spec.precision.compute
    hidden = xp.reshape(hidden, (_count(linear), head.shape[1]))
    if linear.has_reference:
        # Converted before the chunks, so that autodiff sums their gradients in the compute dtype.
        other = xp.reshape(target, (_count(linear), weight.shape[1]))
        hidden, head, bias, *wide = (
            None if a is None else xp.astype(a, compute, copy=False)
            for a in (hidden, head, bias, other, weight, other_bias)
        )
        target, weight = core.Reference(*wide), None
    elif spec.soft:
        target = xp.reshape(target, (_count(linear), spec.classes))
    else:
        target, seen, ignored = _calls.indices(backend, target, hidden, spec)
        # Only `of_rows` supports several class indices for each row.
        several = _calls.shape_of(target)[len(linear.rows) :]
        target = xp.reshape(target, (_count(linear), *several))
        device = backend.device(hidden)
        spec = replace(spec, checked=seen, ignore_index=ignored, device=device)
    if weight is not None:
        weight = xp.astype(weight, compute, copy=False)
    if sample_weight is not None:
        sample_weight = xp.reshape(xp.astype(sample_weight, compute, copy=False), (_count(linear),))
    chosen = places = None
    if drop and spec.checked and spec.ignore_index is not None:
        keeps = backend.to_numpy(target) != spec.ignore_index
        chosen = backend.array(np.flatnonzero(keeps), hidden)
        places = backend.array(np.where(keeps, np.cumsum(keeps) - 1, keeps.sum()), hidden)
        hidden, target = (xp.take(a, chosen, axis=0) for a in (hidden, target))
        if sample_weight is not None:
            sample_weight = xp.take(sample_weight, chosen, axis=0)
        spec = replace(spec, ignore_index=None)
    tiling = tiling_of(linear, hidden, by_classes=linear.by_classes)
    laid_out = (hidden, head, bias, target, weight)
    operands = tuple(xp.astype(option, compute, copy=False) for option in options)
    static, spec = spec, bound(xp, spec, hidden, operands)
    divisor = None
    if normalizer is not None:
        divisor = xp.astype(normalizer, spec.precision.accumulate, copy=False)
    elif linear.reduction in ("mean", "weighted_mean"):
        amounts = core.amounts(tiles, spec, tiling, laid_out, linear.reduction)
        if sample_weight is not None:
            amounts = amounts * sample_weight
        divisor = reductions.total(xp, spec, keep_rows(xp, spec, target, amounts))
    return _Prepared(
        static, spec, tiling, laid_out, operands, sample_weight, divisor, chosen, places
    )


def _seed(linear: Linear, prepared: _Prepared, tiles: Tiles, cotangent: Array | None) -> Array:
    """Return the rows' cotangents."""
    xp, compute = tiles.xp, prepared.spec.precision.compute
    ones = tiles.zeros((tiles.count(prepared.arrays[0]),), compute, prepared.arrays[0]) + 1.0
    if cotangent is None:
        cotangent = ones if linear.reduction == "none" else xp.ones((), dtype=compute)
    else:
        cotangent = xp.astype(cotangent, compute, copy=False)
        if linear.reduction == "none":
            cotangent = xp.reshape(cotangent, (_count(linear),))
            if prepared.chosen is not None:
                cotangent = xp.take(cotangent, prepared.chosen, axis=0)
    scale = reductions.pullback(
        xp,
        prepared.spec,
        cotangent,
        _column(prepared.sample_weight),
        linear.reduction,
        prepared.divisor,
    )
    return xp.reshape(ones[:, None] * scale, (-1,))


def _finish(linear: Linear, prepared: _Prepared, rows: Array) -> Array:
    """Reduce the rows' losses."""
    xp = linear.backend.namespace(rows)
    reduced = reductions.forward(
        xp,
        prepared.spec,
        rows[:, None],
        _column(prepared.sample_weight),
        linear.reduction,
        prepared.divisor,
    )
    reduced = xp.astype(reduced, linear.dtype, copy=False)
    return _as_rows(linear, prepared, reduced) if linear.reduction == "none" else reduced


def _column(x: Array | None) -> Array | None:
    return None if x is None else x[:, None]


def _as_rows(linear: Linear, prepared: _Prepared, x: Array) -> Array:
    """Give an array of rows their shape, and zeros where rows were dropped."""
    tiles = tiles_of(linear.backend, x)
    if prepared.places is not None:
        nothing = tiles.zeros((1, *x.shape[1:]), x.dtype, x)
        x = tiles.xp.take(tiles.xp.concat([x, nothing]), prepared.places, axis=0)
    shape = tuple(-1 if n is None else n for n in linear.rows)
    return tiles.xp.reshape(x, (*shape, *x.shape[1:]))


def _count(linear: Linear) -> int:
    """Return the number of rows, or -1 where it is not known yet, as it is said to `reshape`."""
    return -1 if None in linear.rows else math.prod(n or 0 for n in linear.rows)


def value_shape(problem: LinearProblem) -> tuple[int | None, ...]:
    """Shape of the value."""
    linear = problem.linear
    return linear.rows if linear.reduction == "none" else ()
