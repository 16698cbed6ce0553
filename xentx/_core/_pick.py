"""One class a row: what an integer target needs of the classes, and nothing of the others.

`picked` gathers one number a row, where the sum of a distribution reads every class. `placed` is
its transpose, one write. Where the classes may lie on many devices nothing is gathered, since that
would move them all: the class is compared with every index and selected. So it is in a namespace
that gathers nothing.

If a row is ignored, or its index is out of range, its value is 0, also if its logits are NaN. A
valid index is gathered for such a row.
"""

from collections.abc import Iterable

from xentx._core._distribution import allowed, counted, distribution, hits
from xentx._core._softmax import sum_classes
from xentx._core._spec import LossSpec, is_given
from xentx._types import Array, Namespace


def is_one_class(spec: LossSpec) -> bool:
    """Whether ``q`` is 0 except for the target class."""
    return not spec.soft and not is_given(spec.label_smoothing)


def picked(xp: Namespace, spec: LossSpec, target: Array, values: Array) -> Array:
    """Take the value of each row at its class."""
    if not gathers(xp, values, (spec.axis,)):
        return selected(xp, spec, target, values)
    index, right = _classes(xp, spec, target, 0)
    rows = xp.take_along_axis(values, index, axis=spec.axis)
    return rows if right is None else xp.where(right, rows, 0.0)


def picked_weight(xp: Namespace, spec: LossSpec, target: Array, weight: Array) -> Array:
    """Take the class weight of each row's class."""
    known = None not in target.shape or hasattr(xp, "size_of")
    if not (known and gathers(xp, target, range(target.ndim))):
        return selected(xp, spec, target, weight)
    index, right = _classes(xp, spec, target, 0)
    # In a graph, the number of rows may be unknown before it runs.
    shape = tuple(xp.size_of(target, d) if n is None else n for d, n in enumerate(target.shape))
    flat, index = xp.reshape(weight, (-1,)), xp.reshape(index, (-1,))
    rows = xp.reshape(xp.take_along_axis(flat, index, axis=0), shape)
    return rows if right is None else xp.where(right, rows, 0.0)


def selected(
    xp: Namespace, spec: LossSpec, target: Array, values: Array, *, wrong: bool = False
) -> Array:
    """Do the same by a comparison. A compiler can fuse its transpose with other operations.

    With `wrong`, the result for a row whose index is out of range is the sum of all its values.
    """
    hit = _hits(xp, spec, target, wrong=wrong)
    return xp.sum(xp.where(hit, values, 0.0), axis=spec.axis, keepdims=True)


def placed(
    xp: Namespace, spec: LossSpec, target: Array, rows: Array, like: Array, *, wrong: bool = False
) -> Array:
    """Put the number of each row at its class, in zeros of the shape of `like`.

    With `wrong`, all entries of a row whose index is out of range are its number.
    """
    if hasattr(xp, "placed_along_axis") and gathers(xp, like, (spec.axis,)):
        index, right = _classes(xp, spec, target, 0)
        others, dtype = None, rows.dtype
        if right is not None:
            known = allowed(xp, spec, target) if wrong else None
            if known is not None:
                others = xp.where(known, 0.0, rows)
            rows = xp.where(right, rows, 0.0 if others is None else others)
            # In NumPy, a Python number changes the dtype of bfloat16.
            rows = xp.astype(rows, dtype, copy=False)
        array = xp.placed_along_axis(like, index, rows, axis=spec.axis, others=others)
        if array is not None:
            return array
    return xp.where(_hits(xp, spec, target, wrong=wrong), rows, 0.0)


def mass(xp: Namespace, spec: LossSpec, target: Array, weight: Array | None) -> Array:
    """``sum_k q_k``."""
    if not is_one_class(spec):
        return sum_classes(xp, spec, distribution(xp, spec, target, weight))
    compute = spec.precision.compute
    if weight is None:
        right = counted(xp, spec, target)
        return xp.ones_like(target, dtype=compute) if right is None else xp.astype(right, compute)
    # Taken from weights in a wide dtype, so that autodiff sums their derivatives in it.
    wide = xp.astype(weight, spec.precision.accumulate, copy=False)
    return xp.astype(picked_weight(xp, spec, target, wide), compute, copy=False)


def gathers(xp: Namespace, array: Array, axes: Iterable[int]) -> bool:
    """Whether entries along these axes can be gathered without communication."""
    if not hasattr(xp, "take_along_axis"):
        return False
    return not (hasattr(xp, "is_split") and any(xp.is_split(array, axis) for axis in axes))


def _classes(
    xp: Namespace, spec: LossSpec, target: Array, instead: int
) -> tuple[Array, Array | None]:
    """Return the indices with invalid ones replaced, and the mask of the valid ones (None: all)."""
    right = counted(xp, spec, target)
    return (target, None) if right is None else (xp.where(right, target, instead), right)


def _hits(xp: Namespace, spec: LossSpec, target: Array, *, wrong: bool) -> Array:
    """Mark the class of each row. With `wrong`, mark all classes if the index is out of range."""
    index, _ = _classes(xp, spec, target, -1)
    hit = hits(xp, spec, index)
    known = allowed(xp, spec, target) if wrong else None
    return hit if known is None else hit | ~known
