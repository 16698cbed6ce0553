"""Blocks of the classes by the CPU kernel, for arrays whose memory NumPy can access.

It computes the same as `_core.partials`, in one pass over the block instead of about thirty. It is
used by `_blocks`, and by the method ``by_classes`` of `_core.linear`. The kernel computes in
float64, and rounds once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from xentx._core import linear as core
from xentx._core._spec import LossSpec
from xentx._core.partials import Partials
from xentx._kernel_engine import UNREADABLE, Layout, plan
from xentx._types import Array

NumPyArray = np.ndarray[Any, Any]
# Returns an array that shares the memory, or None.
View = Callable[[Array], NumPyArray | None]
FromNumPy = Callable[[NumPyArray, Array], Array]


def engine(
    spec: LossSpec, portable: core.Engine, view: View, array: FromNumPy, threads: int
) -> core.Engine:
    """Return an engine that uses the kernel for blocks that it can read, and else the core.

    ``array(values, like)`` makes an array on the device of another. `threads` is the largest number
    of threads. With 0, the kernel chooses.
    """

    def state(logits: Array, *block: Any) -> Partials[Array]:
        fields = state_of(spec, view, threads, logits, *block)
        if fields is None:
            return portable.state(logits, *block)
        return Partials(*(array(field, logits) for field in fields))

    def gradient(known: Partials[Array], cotangent: Array, logits: Array, *block: Any) -> Array:
        if write_gradient(spec, view, threads, logits, known, cotangent, logits, *block):
            return logits
        return portable.gradient(known, cotangent, logits, *block)

    return core.Engine(portable.rows, state, gradient)


def state_of(
    spec: LossSpec,
    view: View,
    threads: int,
    logits: Array,
    target: Array,
    weight: Array | None,
    first: int,
) -> NumPyArray | None:
    """State of a block, with a row for each field. None if the kernel cannot read an argument."""
    seen = _seen(view, logits, target, weight)
    if seen is None:
        return None
    values = np.empty((len(Partials._fields), len(seen[0])))
    ready = _plan(spec, "block_state", seen, first)
    return None if ready(values, None, None, threads, *seen) == UNREADABLE else values


def write_gradient(
    spec: LossSpec,
    view: View,
    threads: int,
    gradient: Array,
    known: Partials[Array],
    cotangent: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    first: int,
) -> bool:
    """Write a block's gradient to an array of its shape, which may be the logits.

    Returns False if the kernel cannot read an argument, or if the array is not dense.
    """
    seen, out = _seen(view, logits, target, weight), view(gradient)
    others = [view(field) for field in (*known, cotangent)]
    if seen is None or out is None or any(other is None for other in others):
        return False
    if not out.flags.c_contiguous or out.dtype != seen[0].dtype:
        return False
    *fields, seed = others
    values, seed = np.stack(fields).astype(np.float64, copy=False), np.ascontiguousarray(seed)  # type: ignore[arg-type]
    ready = _plan(spec, "block_gradient", seen, first, values, seed)
    done: int = ready(None, out, seed, threads, *seen, None, None, values)
    return done != UNREADABLE


Seen = tuple[NumPyArray, NumPyArray, NumPyArray | None]


def _seen(view: View, logits: Array, target: Array, weight: Array | None) -> Seen | None:
    x, t = view(logits), view(target)
    w = None if weight is None else view(weight)
    if x is None or t is None or (w is None and weight is not None):
        return None
    return x, t, w


def _plan(spec: LossSpec, operation: str, seen: Seen, first: int, *more: NumPyArray) -> Any:
    """Make the kernel's plan for arrays of this layout. This takes little time."""
    logits, target, weight = seen
    rows, classes = logits.shape
    state, cotangent = more or (None, None)
    return plan(
        spec,
        (rows, classes, 1),
        _layout(logits, 1, 2),
        operation=operation,
        target=_layout(target, 1, 2) if spec.soft else _layout(target[:, 0], 1),
        weight=None if weight is None else _layout(weight[0], 2),
        state=None if state is None else _layout(state, 2, 1),
        cotangent=None if cotangent is None else _layout(cotangent, 1),
        first_class=first,
        all_classes=spec.classes,
    )


def _layout(array: NumPyArray, *axes: int) -> Layout:
    """Describe an array whose axes are those of (group, outer, classes, inner)."""
    strides = [0, 0, 0, 0]
    for axis, stride in zip(axes, array.strides, strict=True):
        strides[axis] = stride // array.itemsize
    return array.dtype.name, (strides[0], strides[1], strides[2], strides[3])
