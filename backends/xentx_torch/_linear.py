"""PyTorch's `linear_cross_entropy`: tiles of its tensors, and autograd.

A reduced loss has its gradients formed beside its value, as long as autograd is all that asks.
torch.func, forward mode and what traces get the plain expression, with all logits at once; so does
a backward that is to be differentiated, a chunk at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from xentx import _linear
from xentx._core.tiles import Tiles
from xentx._problem import Linear
from xentx_torch import _autodiff

Array = torch.Tensor
Arrays = tuple[Array | None, ...]
# Hidden, head and bias: the arrays whose gradients are formed with no autodiff.
FACTORS = 3


class TorchTiles(Tiles):
    """Tensors, multiplied and accumulated in place."""

    def logits(self, hidden: Array, head: Array, bias: Array | None) -> Array:
        return hidden @ head.T if bias is None else torch.addmm(bias, hidden, head.T)

    def add_product(self, x: Array, slope: Array, hidden: Array) -> Array:
        return x.addmm_(slope.T, hidden)


_TILES = TorchTiles(_autodiff.NAMESPACE)


def tiles(array: Array) -> Tiles:  # noqa: ARG001
    """Return how tensors are taken by tiles."""
    return _TILES


def attach(linear: Linear, arrays: Arrays) -> Array:
    """Value of the problem, differentiable by every array and to any order."""
    if _is_observed():
        return _linear.plain(linear, arrays)
    if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in arrays):
        value: Array = _Attached.apply(linear, *arrays)  # type: ignore[no-untyped-call]
        return value
    with torch.no_grad():
        return _linear.solve(linear, arrays)


def solve_with_gradients(
    linear: Linear, arrays: Arrays, cotangent: Array | None, needs: Sequence[bool]
) -> tuple[Array, _linear.LinearGradients]:
    """Value and gradients, which can be differentiated where an argument asks for it."""
    given = (*arrays, cotangent)
    if not torch.is_grad_enabled() or not any(a is not None and a.requires_grad for a in given):
        with torch.no_grad():
            return _linear.solve_with_gradients(linear, arrays, cotangent, needs)
    needed = [*needs, *(False for _ in arrays[len(needs) :])]
    arrays = tuple(
        a if a is None or not need or a.requires_grad else a.detach().requires_grad_()
        for a, need in zip(arrays, needed, strict=True)
    )
    value = attach(linear, arrays)
    wanted = [a for a, need in zip(arrays, needed, strict=True) if need and a is not None]
    seed = torch.ones_like(value) if cotangent is None else cotangent.to(value.dtype)
    found = iter(torch.autograd.grad(value, wanted, seed, create_graph=True))
    gradients = (
        next(found) if need and a is not None else None
        for a, need in zip(arrays, needs, strict=False)
    )
    return value, _linear.LinearGradients(*gradients)


def by_chunks(
    function: Callable[..., tuple[Array, ...]],
    size: int,
    mapped: tuple[Array, ...],
    whole: Arrays,
) -> tuple[Array, ...]:
    """Join ``function(*chunks of mapped, *whole)``, of which only the inputs are kept."""
    count = mapped[0].shape[0]
    if _is_observed() or not torch.is_grad_enabled() or count <= size:
        return function(*mapped, *whole)
    chunks = []
    for start in range(0, count, size):
        parts = (array[start : start + size] for array in mapped)
        chunks.append(checkpoint(function, *parts, *whole, use_reentrant=False))
    return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))


def _is_observed() -> bool:
    """Whether somebody has to see operators: a compiler, a tracer, torch.func, forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


class _Attached(torch.autograd.Function):
    """The value, and the gradients by the factors, formed in its own pass where they can be."""

    @staticmethod
    def forward(ctx: Any, linear: Linear, *arrays: Array | None) -> Array:
        needs = ctx.needs_input_grad[1:]
        ctx.linear = linear
        ctx.save_for_backward(*arrays)
        # Rounded to a narrow dtype they could not be scaled later on, and where saved tensors are
        # packed, as in checkpointing, memory matters more than time.
        early = (
            linear.reduction != "none"
            and not linear.by_classes
            and not any(needs[FACTORS:])
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None  # noqa: FBT003
        )
        if not early:
            return _linear.solve(linear, arrays)
        value, gradients = _linear.solve_with_gradients(linear, arrays, None, (*needs[:3], False))
        ctx.gradients = gradients
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        arrays, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        # Taken so that no reference is left, and by one thread of several.
        gradients = ctx.__dict__.pop("gradients", None)
        if torch.is_grad_enabled() or any(needs[FACTORS:]):
            return None, *_differentiate(ctx.linear, arrays, needs, cotangent)
        if gradients is None:
            _, gradients = _linear.solve_with_gradients(
                ctx.linear, arrays, cotangent, (*needs[:3], False)
            )
        elif not (cotangent.is_cpu and cotangent.item() == 1.0):
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(cotangent)
        return None, *gradients[:FACTORS], *(None for _ in arrays[FACTORS:])


def _differentiate(
    linear: Linear, arrays: Arrays, needs: tuple[bool, ...], cotangent: Array
) -> list[Array | None]:
    """Gradients by all arrays that need one, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            arrays = tuple(
                None if a is None else a.detach().requires_grad_(needed)
                for a, needed in zip(arrays, needs, strict=True)
            )
        wanted = [a for a, needed in zip(arrays, needs, strict=True) if needed]
        value = _linear.plain(linear, arrays)
        found = iter(torch.autograd.grad(value, wanted, cotangent, create_graph=again))
    return [next(found) if needed else None for needed in needs]
