"""Plans of the kernel, prepared once for arrays of the same layout, and memory for its results.

Plans are cached by the strides of the arrays, because for ten classes making a plan takes longer
than the loss.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from xentx import _calls, _kernel_engine
from xentx._core._spec import LossSpec
from xentx_torch import _layout, _private

Array = torch.Tensor
# Logits, target, weight, sample_weight and normalizer, as `kernel/kernel.h` says.
Arrays = Sequence[Array | None]

TYPES = (torch.Tensor, torch.nn.Parameter)
PLAIN = frozenset(TYPES)
_NAMES = ("logits", "target", "weight", "sample_weight", "normalizer", "cotangent")
_get_num_threads = torch.get_num_threads
_empty_like = torch.empty_like


def is_plain(array: Array) -> bool:
    """Whether address and strides define a tensor's values."""
    return (
        type(array) in PLAIN
        and array.is_cpu
        and array.layout is torch.strided
        and not array.is_neg()
    )


def first(arrays: Arrays) -> Array:
    """Return the logits, which are always given."""
    logits = arrays[0]
    assert logits is not None  # noqa: S101 -- for the type checker
    return logits


@dataclass(frozen=True, slots=True)
class Ready:
    """A plan of the kernel, and the layout of its results.

    Parameters
    ----------
    plan
        The plan.
    copied
        Which arrays must be made contiguous first. None if no array must.
    scalar
        A 0-d value to call empty_like with, which is faster. None if the value has dimensions.
    shape, strides
        Shape and strides of the value.
    gradient_strides
        Strides of the gradient. None if they are those of the logits.
    """

    plan: Callable[..., int]
    copied: tuple[bool, ...] | None
    scalar: Array | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    gradient_strides: tuple[int, ...] | None

    def empty_value(self, logits: Any) -> Array:
        """Memory for the value."""
        if self.scalar is not None:
            return _empty_like(self.scalar)
        return torch.empty_strided(self.shape, self.strides, dtype=logits.dtype, device="cpu")

    def empty_gradient(self, logits: Any) -> Array:
        """Memory for the gradient."""
        if self.gradient_strides is None:
            return _empty_like(logits)
        return torch.empty_strided(
            logits.shape, self.gradient_strides, dtype=logits.dtype, device="cpu"
        )

    def empty_fields(self, logits: Any) -> tuple[Array, ...]:
        """Memory for row statistics."""
        dtypes = (*[logits.dtype] * 4, torch.bool, torch.int64)
        return tuple(
            torch.empty_strided(self.shape, self.strides, dtype=dtype, device="cpu")
            for dtype in dtypes
        )

    def run(
        self,
        arrays: Arrays,
        cotangent: Any,
        value: Any,
        gradient: Array | None,
    ) -> int:
        """Call the kernel. Return the first row with a target out of range, or -1.

        For row statistics, the value and the cotangent are tuples.
        """
        if self.copied is not None:
            arrays = [
                array.contiguous() if array is not None and copied else array
                for array, copied in zip(arrays, self.copied, strict=False)
            ]
            if cotangent is not None and self.copied[-1]:
                cotangent = cotangent.contiguous()
        bad = self.plan(value, gradient, cotangent, _get_num_threads(), *arrays)
        if bad == _kernel_engine.UNREADABLE:
            arrays = [_readable(array) for array in arrays]
            cotangent = _readable(cotangent)
            return self.run(arrays, cotangent, value, gradient)
        return bad


def _call_stats(
    plan: Any, fields: Any, gradient: Any, cotangents: Any, threads: int, *arrays: Array | None
) -> int:
    nothing = (None, None, None, None)
    bad: int = plan.row_stats(fields or (), gradient, cotangents or nothing, threads, *arrays[:3])
    return bad


def _readable(array: Any) -> Any:
    """Copy an array without memory, or with unaligned elements. The strides stay the same."""
    if isinstance(array, tuple):
        return tuple(map(_readable, array))
    if array is None or not array.numel():
        return array
    if array.data_ptr() == 0:
        if not _private.is_zero(array):  # PyTorch's own functions would crash
            msg = f"got a tensor of shape {tuple(array.shape)} whose storage was freed"
            raise ValueError(msg)
        return torch.empty_strided(array.shape, array.stride(), dtype=array.dtype).copy_(array)
    if array.data_ptr() % array.element_size() == 0:
        return array
    size = 1 + sum((n - 1) * s for n, s in zip(array.shape, array.stride(), strict=True))
    everything = array.detach().as_strided((size,), (1,))
    return everything.clone().as_strided(array.shape, array.stride(), 0)


def prepare(
    plans: dict[Hashable, Any],
    spec: LossSpec,
    arrays: Arrays,
    cotangent: Array | None = None,
    *,
    groups: int = 0,
    in_order: bool = False,
    stats: bool = False,
) -> Ready | None:
    """Return the plan for arrays of this layout. None if the kernel cannot read them.

    Parameters
    ----------
    plans
        The cached plans for arrays of these shapes and dtypes.
    cotangent
        The cotangent if it has the shape of the logits. Others have the layout of `seed`.
    groups
        The number of leading axes of every array over which the loss is mapped.
    in_order
        Whether results must be contiguous. Otherwise they have the layout of the logits.
    stats
        Whether it is for the row statistics, which have separate `plans`.
    """
    logits, target, weight, sample_weight, normalizer = arrays
    assert logits is not None  # noqa: S101
    if not is_plain(logits):
        return None
    key: tuple[Hashable, ...]
    if target is not None:
        if not is_plain(target):
            return None
        key = (logits.stride(), target.stride())
    elif cotangent is None:
        key = (logits.stride(),)
    else:
        key = (logits.stride(), cotangent.stride(), cotangent.dtype)
    if not (weight is sample_weight is normalizer is None):
        for array in arrays[2:]:
            if array is None:
                key += (None,)
            elif is_plain(array):
                key += (array.stride(),)
            else:
                return None
    ready: Ready | None = plans.get(key)
    if ready is None:
        ready = plans[key] = _make(spec, arrays, cotangent, groups, in_order=in_order, stats=stats)
    return ready


def seed(spec: LossSpec, arrays: Arrays, cotangent: Array) -> Array:
    """Convert the cotangent of a loss for the plans: contiguous, in the compute dtype."""
    return cotangent.to(_compute(spec, arrays)).contiguous()


def pull(
    plans: dict[Hashable, Any],
    spec: LossSpec,
    arrays: Arrays,
    cotangent: Array,
    gradient: Array | None = None,
    *,
    groups: int = 0,
    in_order: bool = False,
) -> Array:
    """Gradient by the logits for a plain cotangent, in memory that may be given."""
    if not _calls.OPERATIONS[spec.operation].IS_ROWWISE:
        if not cotangent.is_floating_point():
            cotangent = cotangent.to(_compute(spec, arrays))  # the kernel reads floats
        spec = replace(spec, operation=f"{spec.operation}_pullback")
        ready = prepare(plans, spec, arrays, cotangent, groups=groups, in_order=in_order)
    else:
        ready = prepare(plans, spec, arrays, groups=groups, in_order=in_order)
        cotangent = seed(spec, arrays, cotangent)
    assert ready is not None  # noqa: S101 -- it was, for the value
    if gradient is None:
        gradient = ready.empty_gradient(first(arrays))
    ready.run(arrays, cotangent, None, gradient)
    return gradient


def pull_stats(
    plans: dict[Hashable, Any], spec: LossSpec, arrays: Arrays, cotangents: Arrays
) -> Array:
    """Gradient by the logits for plain cotangents of row statistics, None where there is none."""
    ready = prepare(plans, spec, arrays, stats=True)
    assert ready is not None  # noqa: S101 -- it was, for the value
    seeds = tuple(None if c is None else seed(spec, arrays, c) for c in cotangents)
    gradient = ready.empty_gradient(first(arrays))
    ready.run(arrays, seeds, None, gradient)
    return gradient


def _compute(spec: LossSpec, arrays: Arrays) -> torch.dtype:
    double = spec.exact or first(arrays).dtype == torch.float64
    return torch.float64 if double else torch.float32


def _make(
    spec: LossSpec,
    arrays: Arrays,
    cotangent: Array | None,
    groups: int,
    *,
    in_order: bool,
    stats: bool,
) -> Ready:
    logits = first(arrays)
    shape = tuple(logits.shape)
    axis = groups + spec.axis
    everything, mapped = range(len(shape)), range(groups)
    rows = [i for i in everything if i != axis]
    value_axes = rows if spec.reduction == "none" else mapped
    value_shape = tuple(shape[i] for i in value_axes)
    value_strides = _layout.dense(value_shape, range(len(value_shape)))
    if cotangent is None:
        last, dtype = _layout.View(value_axes, value_strides), _compute(spec, arrays)
    else:
        last, dtype = _layout.View(everything, cotangent.stride()), cotangent.dtype
    axes = (everything if spec.soft else rows, (*mapped, axis), rows, mapped)
    others = [
        None if array is None else _layout.View(over, array.stride())
        for over, array in zip(axes, arrays[1:], strict=True)
    ]
    layout = _layout.arrange(
        shape,
        groups,
        axis,
        _layout.View(everything, logits.stride()),
        [*others, last],
        in_order=in_order,
    )
    dtypes = (*(None if array is None else array.dtype for array in arrays), dtype)
    described: Any = {
        name: None if dtype is None else (str(dtype).removeprefix("torch."), strides)
        for name, dtype, strides in zip(_NAMES, dtypes, layout.strides, strict=True)
    }
    if cotangent is not None or not _calls.OPERATIONS[spec.operation].IS_ROWWISE:
        value_shape, value_strides = shape, layout.result
    operation = "row_stats" if stats else None
    plan = _kernel_engine.plan(
        spec, layout.sizes, groups=layout.groups, operation=operation, **described
    )
    return Ready(
        plan=functools.partial(_call_stats, plan) if stats else plan,
        copied=layout.copied if any(layout.copied) else None,
        scalar=torch.empty((), dtype=logits.dtype, device="cpu") if value_shape == () else None,
        shape=value_shape,
        strides=value_strides,
        gradient_strides=None if layout.result == logits.stride() else layout.result,
    )
