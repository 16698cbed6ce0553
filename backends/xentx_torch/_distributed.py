"""DTensors, which are computed by the portable core and PyTorch's own dispatch.

An operator takes DTensors or other tensors, no mixture but for numbers: what stands beside a
DTensor is made one, replicated over its mesh.
"""

from typing import Any

import torch

from xentx._namespace import extended

Array = torch.Tensor


def take_along_axis(x: Array, indices: Array, /, *, axis: int) -> Array:
    """Take entries along an axis. That of array-api-compat makes sizes a condition of a graph."""
    return torch.gather(x, axis, indices.long())


def placed_along_axis(
    like: Array, indices: Array, values: Array, *, axis: int, others: Array | None
) -> Array | None:
    """Put values along an axis of zeros, or of `others`, in the shape of `like`.

    None while a compiler reads this: it joins a selection with what follows, and no scatter.
    """
    if torch.compiler.is_compiling():
        return None
    others = values.new_zeros(()) if others is None else others
    # Of what is expanded, scatter copies no zeros that were written before.
    return torch.scatter(others.expand(like.shape), axis, indices.long(), values)


NAMESPACE = extended(torch.empty(0), take_along_axis, placed_along_axis)


def is_distributed(array: Array) -> bool:
    """Whether a tensor is a DTensor, of which no module is imported to find out."""
    return hasattr(array, "device_mesh") and hasattr(array, "placements")


def replicated(array: Array, mesh: Any) -> Array:
    """Make a tensor that every process has a DTensor, through which gradients flow."""
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415 -- takes a second

    if isinstance(array, DTensor):
        return array
    return DTensor.from_local(array, mesh, [Replicate()] * mesh.ndim, run_check=False)


class Namespace:
    """PyTorch's namespace, whose new arrays stand beside the DTensors of a mesh."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh

    def __getattr__(self, name: str) -> Any:
        return getattr(NAMESPACE, name)

    def is_split(self, array: Array, axis: int) -> bool:  # noqa: ARG002 -- whatever its placements
        """Whether an axis may lie in parts on several devices."""
        return True

    def arange(self, *args: Any, **options: Any) -> Array:
        return replicated(NAMESPACE.arange(*args, **options), self._mesh)

    def ones(self, *args: Any, **options: Any) -> Array:
        return replicated(NAMESPACE.ones(*args, **options), self._mesh)

    def zeros(self, *args: Any, **options: Any) -> Array:
        return replicated(NAMESPACE.zeros(*args, **options), self._mesh)


def namespace(array: Array | None) -> Any:
    """Return the namespace that makes arrays beside this one."""
    if array is None or type(array) is torch.Tensor or not is_distributed(array):
        return NAMESPACE
    return Namespace(array.device_mesh)  # type: ignore[attr-defined]
