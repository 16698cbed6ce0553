"""A block of the classes of a last layer: its state and its gradients, chunk by chunk.

The logits of the block are never stored as a whole. The state is computed from whole chunks of
rows by functions that the framework differentiates. The gradients are computed by
`xentx._core.linear`, without autodiff.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from xentx import _linear, _shards
from xentx._calls import LinearProblem, Problem, shape_of
from xentx._core import linear as core
from xentx._core._spec import LossSpec
from xentx._core.partials import Partials
from xentx._linear import LinearGradients
from xentx._shards import Arrays, Shard
from xentx._types import Array


class _Layer(NamedTuple):
    """A block with the rows on one axis.

    Parameters
    ----------
    shard
        The block of classes.
    spec
        The loss with the dtype of the matrix products. That of `shard` has the dtype of states.
    hidden, head, bias
        The operands of the logits.
    others
        Target, weight and the options that are arrays, as in the arrays of a shard.
    rows
        The shape of the rows. An unknown size is -1.
    """

    shard: Shard
    spec: LossSpec
    hidden: Array
    head: Array
    bias: Array | None
    others: Arrays
    rows: tuple[int, ...]


def state(problem: LinearProblem, classes: int, start: Any) -> Partials[Array]:
    """State of the block that begins at the class `start`, in the shape of the rows."""
    linear, layer = problem.linear, _lay_out(problem, classes, start)
    shard, backend = layer.shard, linear.backend
    tiles = _linear.tiles_of(backend, layer.hidden)

    def of_chunk(
        hidden: Array, target: Array, head: Array, bias: Array | None, *others: Array | None
    ) -> tuple[Array, ...]:
        indices = target if shard.spec.soft else target[:, 0]
        # An ignored row may contain NaN, and the product of NaN and a slope of 0 is NaN.
        hidden = core.kept_rows(tiles.xp, layer.spec, hidden, indices)
        logits = core.logits_of(tiles, layer.spec, hidden, head, bias)
        return tuple(_shards.state(shard, (logits, target, *others)))

    size = _linear.tiling_of(linear, layer.hidden, by_classes=False).rows
    target, *others = layer.others
    mapped, whole = (layer.hidden, target), (layer.head, layer.bias, *others)
    if backend.linear is None:
        fields = _linear.by_chunks(tiles, of_chunk, size, mapped, whole)
    else:
        fields = backend.linear.by_chunks(of_chunk, size, mapped, whole)
    return Partials(*(tiles.xp.reshape(field, layer.rows) for field in fields))


def gradients(
    problem: LinearProblem,
    classes: int,
    start: Any,
    known: Partials[Array],
    cotangent: Array | None,
) -> LinearGradients[Array]:
    """Gradients of the block, from the state of all classes and a cotangent of each row."""
    linear, backend = problem.linear, problem.linear.backend
    arrays = tuple(None if a is None else backend.constant(a) for a in problem.arrays)
    layer = _lay_out(problem._replace(arrays=arrays), classes, start)
    tiles = _linear.tiles_of(backend, layer.hidden)
    xp, spec = tiles.xp, layer.spec
    if cotangent is None:
        cotangent = xp.ones_like(known.top)
    *fields, seed = (xp.reshape(backend.constant(field), (-1,)) for field in (*known, cotangent))
    target, weight, *options = layer.others
    operands = (
        layer.hidden,
        layer.head,
        layer.bias,
        target if spec.soft else target[:, 0],
        None if weight is None else weight[0, :],
    )
    by_hidden, *others = core.gradients_of(
        tiles,
        spec,
        _linear.tiling_of(linear, layer.hidden, by_classes=True),
        operands,
        Partials(*fields),
        xp.astype(seed, spec.precision.accumulate, copy=False),
        _shards.engine(layer.shard, options),
        (True, True, layer.bias is not None),
    )
    by_hidden = xp.reshape(by_hidden, (*layer.rows, layer.head.shape[1]))
    by_head, by_bias = (
        None if gradient is None or array is None else xp.astype(gradient, array.dtype, copy=False)
        for gradient, array in zip(others, operands[1:3], strict=True)
    )
    return LinearGradients(by_hidden, by_head, by_bias, None)


def _lay_out(problem: LinearProblem, classes: int, start: Any) -> _Layer:
    kind = problem.linear.kind
    hidden, head, bias, target, weight, _, _, _, *options = problem.arrays
    xp, shape = kind.backend.namespace(hidden), shape_of(hidden)[:-1]
    rows = tuple(-1 if size is None else size for size in shape)
    assert head is not None  # noqa: S101 -- for the type checker
    flat = xp.reshape(hidden, (-1 if -1 in rows else math.prod(rows), head.shape[1]))
    shard, arrays, _ = _shards.lay_out(
        Problem(kind, (hidden, target, weight, None, None, *options)),
        flat,
        shape,
        None,
        size=kind.spec.classes,
        classes=classes,
        start=start,
    )
    spec = replace(shard.spec, precision=kind.spec.precision)
    return _Layer(shard, spec, arrays[0], head, bias, arrays[1:], rows)
