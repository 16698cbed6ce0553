"""From strides to the kernel's four axes: which views of memory it can read as they lie.

The kernel sees every array as [group, outer, classes, inner], one stride an axis. Tensors of more
axes fit where those that fall together follow one another in memory. The rows' axes can be split
into outer and inner ones at any place, which leaves the rows in their order: beside the class axis
for contiguous logits, behind all of them for logits whose classes lie closest together
(channels_last). With the split that matches the memory of the logits, the kernel writes a gradient
of their strides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Strides = tuple[int, ...]
KernelStrides = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class View:
    """An array over some axes of the logits.

    Parameters
    ----------
    axes
        Those that it has, in their order.
    strides
        Its stride along each of them.
    """

    axes: Sequence[int]
    strides: Strides

    def spread(self, ndim: int) -> Strides:
        """Strides along all axes of the logits."""
        strides = dict(zip(self.axes, self.strides, strict=True))
        return tuple(strides.get(axis, 0) for axis in range(ndim))


@dataclass(frozen=True, slots=True)
class Layout:
    """How the arrays of a problem look to the kernel.

    Parameters
    ----------
    groups, sizes
        Lengths of the kernel's axes: group, and (outer, classes, inner).
    strides
        Each array's along the four, None where there is no array. Where it must be copied, those
        of a contiguous copy.
    copied
        Whether it must.
    result
        Strides of what the kernel writes in the shape of the logits.
    """

    groups: int
    sizes: tuple[int, int, int]
    strides: tuple[KernelStrides | None, ...]
    copied: tuple[bool, ...]
    result: Strides


def dense(shape: Sequence[int], order: Sequence[int]) -> Strides:
    """Strides of an array without gaps whose axes lie in this order, the closest last."""
    strides = {axis: math.prod(shape[a] for a in order[i + 1 :]) for i, axis in enumerate(order)}
    return tuple(strides[axis] for axis in sorted(order))


def _folded(shape: Sequence[int], strides: Strides, axes: Sequence[int]) -> int | None:
    """Return the stride of these axes taken as one; None where they are no one axis."""
    stride, following = None, 0
    for axis in reversed(axes):
        if shape[axis] == 1:
            continue
        if stride is None:
            stride = strides[axis]
        elif strides[axis] != following:
            return None
        following = strides[axis] * shape[axis]
    return stride or 0


def arrange(
    shape: Sequence[int],
    groups: int,
    axis: int,
    logits: View,
    others: Sequence[View | None],
    *,
    in_order: bool,
) -> Layout:
    """Fit arrays to the kernel's axes, copying as few as can be.

    Parameters
    ----------
    shape, axis
        Shape of the logits, and which of its axes holds the classes.
    groups
        How many of the first axes are the kernel's groups.
    logits, others
        How the arrays lie.
    in_order
        Whether what is written must be contiguous, whatever the logits are.
    """
    ndim = len(shape)
    rows = [i for i in range(groups, ndim) if i != axis]
    beside = axis - groups
    views = (logits, *others)

    def kernel_axes(split: int) -> tuple[Sequence[int], ...]:
        return range(groups), rows[:split], (axis,), rows[split:]

    def written(split: int) -> Strides:
        return dense(shape, [i for axes in kernel_axes(split) for i in axes])

    def seen(view: View, split: int) -> KernelStrides | None:
        strides = view.spread(ndim)
        group, outer, classes, inner = (
            _folded(shape, strides, axes) for axes in kernel_axes(split)
        )
        if group is None or outer is None or classes is None or inner is None:
            return None
        return group, outer, classes, inner

    def mismatched(split: int) -> bool:
        pairs = zip(shape, logits.spread(ndim), written(split), strict=True)
        return any(ours != kernels for size, ours, kernels in pairs if size > 1)

    # Where none matches, or several do, the natural one is the first.
    splits = [beside, *(split for split in range(len(rows) + 1) if split != beside)]
    splits = splits[:1] if in_order else sorted(splits, key=mismatched)
    fitting = (s for s in splits if all(view is None or seen(view, s) for view in views))
    split = next(fitting, beside)  # where contiguous copies fit

    strides: list[KernelStrides | None] = []
    copied = []
    for view in views:
        found = None if view is None else seen(view, split)
        copied.append(view is not None and found is None)
        if view is not None and found is None:
            own = [shape[i] for i in view.axes]
            found = seen(View(view.axes, dense(own, range(len(own)))), split)
        strides.append(found)
    mapped, *sizes = (math.prod(shape[i] for i in axes) for axes in kernel_axes(split))
    return Layout(
        mapped, (sizes[0], sizes[1], sizes[2]), tuple(strides), tuple(copied), written(split)
    )
