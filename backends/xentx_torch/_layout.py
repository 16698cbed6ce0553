"""Map the strides of tensors to the four axes of the kernel.

The kernel reads every array as [group, outer, classes, inner], with one stride per axis. A tensor
with more axes fits if axes that are merged are adjacent in memory. The axes of the rows are split
into outer and inner ones, in their order: at the class axis for contiguous logits, after all of
them for logits with adjacent classes (channels_last). With the split that matches the memory of the
logits, the kernel writes a gradient with the same strides.
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
        Its axes, in order.
    strides
        Its stride along each axis.
    """

    axes: Sequence[int]
    strides: Strides

    def spread(self, ndim: int) -> Strides:
        """Strides along all axes of the logits."""
        strides = dict(zip(self.axes, self.strides, strict=True))
        return tuple(strides.get(axis, 0) for axis in range(ndim))


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of a problem on the kernel's axes.

    Parameters
    ----------
    groups, sizes
        Lengths of the kernel's axes: group, and (outer, classes, inner).
    strides
        The strides of each array along the four axes. None if there is no array. If it must be
        copied, the strides of a contiguous copy.
    copied
        Whether each array must be copied.
    result
        Strides of results in the shape of the logits.
    """

    groups: int
    sizes: tuple[int, int, int]
    strides: tuple[KernelStrides | None, ...]
    copied: tuple[bool, ...]
    result: Strides


def dense(shape: Sequence[int], order: Sequence[int]) -> Strides:
    """Strides of a dense array with its axes in this order in memory, the fastest last."""
    strides = {axis: math.prod(shape[a] for a in order[i + 1 :]) for i, axis in enumerate(order)}
    return tuple(strides[axis] for axis in sorted(order))


def _folded(shape: Sequence[int], strides: Strides, axes: Sequence[int]) -> int | None:
    """Return the stride of these axes merged into one. None if they cannot be merged."""
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
    """Map arrays to the kernel's axes, with as few copies as possible.

    Parameters
    ----------
    shape, axis
        Shape of the logits, and the class axis.
    groups
        The number of leading axes that are the kernel's groups.
    logits, others
        The views of the arrays.
    in_order
        Whether results must be contiguous for all strides of the logits.
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

    # If none matches, or several do, the split at the class axis is the first.
    splits = [beside, *(split for split in range(len(rows) + 1) if split != beside)]
    splits = splits[:1] if in_order else sorted(splits, key=mismatched)
    fitting = (s for s in splits if all(view is None or seen(view, s) for view in views))
    split = next(fitting, beside)  # contiguous copies fit

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
