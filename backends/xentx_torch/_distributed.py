"""DTensors, which the portable core computes with PyTorch's dispatch.

The operands of an operator must all be DTensors, except numbers. Therefore tensors that are
combined with a DTensor are replicated over its mesh.
"""

from typing import Any

import torch

from xentx._namespace import extended

Array = torch.Tensor


def take_along_axis(x: Array, indices: Array, /, *, axis: int) -> Array:
    """Take entries along an axis. In array-api-compat, sizes would become guards of a graph."""
    return torch.gather(x, axis, indices.long())


def placed_along_axis(
    like: Array, indices: Array, values: Array, *, axis: int, others: Array | None
) -> Array | None:
    """Put values along an axis of zeros, or of `others`, in the shape of `like`.

    None while compiling: a compiler can fuse a selection with other operations, but no scatter.
    """
    if torch.compiler.is_compiling():
        return None
    others = values.new_zeros(()) if others is None else others
    # From an expanded tensor, scatter makes the result without writing zeros first.
    return torch.scatter(others.expand(like.shape), axis, indices.long(), values)


NAMESPACE = extended(torch.empty(0), take_along_axis, placed_along_axis)


def is_distributed(array: Array) -> bool:
    """Whether a tensor is a DTensor. The module of DTensor is not imported."""
    return hasattr(array, "device_mesh") and hasattr(array, "placements")


def replicated(array: Array, mesh: Any) -> Array:
    """Make a DTensor from a tensor that every process has. It is differentiable."""
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415 -- takes a second

    if isinstance(array, DTensor):
        return array
    return DTensor.from_local(array, mesh, [Replicate()] * mesh.ndim, run_check=False)


class Namespace:
    """PyTorch's namespace, which makes new arrays as DTensors of a mesh."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh

    def __getattr__(self, name: str) -> Any:
        return getattr(NAMESPACE, name)

    def is_split(self, array: Array, axis: int) -> bool:  # noqa: ARG002 -- for all placements
        """Whether an axis may be split over several devices."""
        return True

    def arange(self, *args: Any, **options: Any) -> Array:
        return replicated(NAMESPACE.arange(*args, **options), self._mesh)

    def ones(self, *args: Any, **options: Any) -> Array:
        return replicated(NAMESPACE.ones(*args, **options), self._mesh)

    def zeros(self, *args: Any, **options: Any) -> Array:
        return replicated(NAMESPACE.zeros(*args, **options), self._mesh)


def namespace(array: Array | None) -> Any:
    """Return the namespace that makes arrays to combine with this one."""
    if array is None or type(array) is torch.Tensor or not is_distributed(array):
        return NAMESPACE
    return Namespace(array.device_mesh)  # type: ignore[attr-defined]
