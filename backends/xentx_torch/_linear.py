"""PyTorch's `linear_cross_entropy`: tiles of its tensors, autograd and torch.compile.

A reduced loss has its gradients formed beside its value, as long as autograd is all that asks.
Compilers call that as an operator. torch.func, forward mode and what else traces get the plain
expression, with all logits at once; a backward that is to be differentiated, a chunk at a time.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from xentx import _linear, _problem
from xentx._core import cross_entropy
from xentx._core._spec import OPTIONS
from xentx._core.tiles import Tiles
from xentx._problem import Linear
from xentx_torch import _autodiff, _backend, _native, _plans

Array = torch.Tensor
NumPyArray = np.ndarray[Any, Any]
Arrays = tuple[Any, ...]
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


def view(array: Array) -> NumPyArray | None:
    """Memory of a plain tensor. What NumPy has no dtype for is widened: it is only to be read."""
    if not _plans.is_plain(array) or _native.is_observed():
        return None
    seen = array.detach()
    return (seen.float() if seen.dtype == torch.bfloat16 else seen).numpy()


threads = torch.get_num_threads


def attach(linear: Linear, arrays: Arrays) -> Array:
    """Value of the problem, differentiable by every array and to any order."""
    others = arrays[FACTORS:]
    if torch.compiler.is_compiling() and not any(a is not None and a.requires_grad for a in others):
        return _by_operator(linear, arrays)
    with _as_they_are(arrays[0]):
        return _attach(linear, arrays)


def _attach(linear: Linear, arrays: Arrays) -> Array:
    if _native.is_observed():
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
    if _native.is_observed():
        return function(*mapped, *whole)
    if torch.is_grad_enabled() and mapped[0].shape[0] > size:
        function = functools.partial(checkpoint, function, use_reentrant=False)
    return _linear.by_chunks(_TILES, function, size, mapped, whole)


def _as_they_are(array: Array | None) -> AbstractContextManager[Any]:
    """Context without autocast, which would multiply float32 operands in bfloat16."""
    device = "cpu" if array is None else array.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class _Attached(torch.autograd.Function):
    """The value, and the gradients by the factors, formed in its own pass where they can be."""

    @staticmethod
    def forward(ctx: Any, linear: Linear, *arrays: Array | None) -> Array:
        needs = ctx.needs_input_grad[1:]
        ctx.linear = linear
        ctx.save_for_backward(*arrays)
        # Where saved tensors are packed, as in checkpointing, memory matters more than time.
        early = (
            linear.is_early
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


# For compilers: an operator with the gradients among its results, and one for any cotangent.


def _by_operator(linear: Linear, arrays: Arrays) -> Array:
    task = linear.kind.task
    value: Array = torch.ops.xentx.linear_loss(
        *arrays[:_COUNT],
        arrays[_COUNT:],
        linear.kind.spec.operands,
        task.ignore_index,
        task.label_smoothing,
        task.z_loss,
        task.logit_softcap,
        linear.reduction,
        "exact" if task.exact else "default",
        linear.chunk or 0,
        [array is not None and array.requires_grad for array in arrays[:FACTORS]],
    )[0]
    return value


def _problem_of(arrays: Arrays, options: Sequence[Any]) -> tuple[Linear, Arrays]:
    hidden, head, bias, target, weight, sample_weight, normalizer = arrays
    operands, names, ignore_index, *numbers, reduction, precision, chunk = options
    given = dict(zip(OPTIONS, numbers, strict=True)) | dict(zip(names, operands, strict=True))
    return _problem.linear(
        _backend.BACKEND,
        cross_entropy,
        hidden,
        head,
        target,
        bias=bias,
        weight=weight,
        sample_weight=sample_weight,
        normalizer=normalizer,
        ignore_index=ignore_index,
        reduction=reduction,
        precision=precision,
        chunk=chunk or "auto",
        **given,
    )


_ARRAYS = (
    "Tensor hidden, Tensor head, Tensor? bias, Tensor target, Tensor? weight, "
    "Tensor? sample_weight, Tensor? normalizer"
)
# The options that are arrays and their names, then all of them, of which those are not read.
_OPTIONS = (
    "Tensor[] operands, str[] names, int? ignore_index, "
    "float label_smoothing, float z_loss, float? logit_softcap, "
    "str reduction, str precision, int chunk, bool[] needs"
)
_COUNT = 7


def _loss(*args: Any) -> tuple[Array, ...]:
    """Value, and the gradients for a cotangent of 1 where they are formed early; else nothing."""
    *options, needs = args[_COUNT:]
    linear, arrays = _problem_of(args[:_COUNT], options)
    if not (linear.is_early and any(needs)):
        return _linear.solve(linear, arrays), *_or_nothing((None,) * FACTORS, arrays[0])
    value, gradients = _linear.solve_with_gradients(linear, arrays, None, (*needs, False))
    return value, *_or_nothing(gradients[:FACTORS], arrays[0])


def _loss_shapes(*args: Any) -> tuple[Array, ...]:
    *options, needs = args[_COUNT:]
    linear, arrays = _problem_of(args[:_COUNT], options)
    shape = linear.rows if linear.reduction == "none" else ()
    value = arrays[0].new_empty(cast("Sequence[int]", shape), dtype=linear.dtype)
    return value, *_shapes(arrays, [linear.is_early and needed for needed in needs])


def _gradients(cotangent: Array, *args: Any) -> tuple[Array, ...]:
    *options, needs = args[_COUNT:]
    linear, arrays = _problem_of(args[:_COUNT], options)
    _, gradients = _linear.solve_with_gradients(linear, arrays, cotangent, (*needs, False))
    return _or_nothing(gradients[:FACTORS], arrays[0])


def _gradients_shapes(cotangent: Array, *args: Any) -> tuple[Array, ...]:  # noqa: ARG001
    return _shapes(args[:_COUNT], args[-1])


def _shapes(arrays: Arrays, needs: Sequence[bool]) -> tuple[Array, ...]:
    found = [
        torch.empty_like(array, memory_format=torch.contiguous_format)
        if needed and array is not None
        else None
        for array, needed in zip(arrays[:FACTORS], needs, strict=True)
    ]
    return _or_nothing(found, arrays[0])


def _or_nothing(gradients: Sequence[Array | None], like: Array | None) -> tuple[Array, ...]:
    """Put empty tensors where there is no gradient, as an operator has to return tensors."""
    assert like is not None  # noqa: S101 -- for the type checker
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
    operands, *ctx.options = inputs[_COUNT:]
    ctx.nothing = (None,) * _COUNT + ([None] * len(operands),) + (None,) * len(ctx.options)
    ctx.save_for_backward(*inputs[:_COUNT], *operands, *output[1:])
    ctx.set_materialize_grads(False)


def _pull_back(ctx: Any, cotangent: Array | None, *_: Array | None) -> tuple[Array | None, ...]:
    if cotangent is None:
        return ctx.nothing
    saved = ctx.saved_tensors
    arrays, operands, known = saved[:_COUNT], saved[_COUNT:-FACTORS], saved[-FACTORS:]
    *options, needs = ctx.options
    if _problem_of(arrays, (operands, *options))[0].is_early:
        found = [(gradient * cotangent).to(gradient.dtype) for gradient in known]
    else:
        found = torch.ops.xentx.linear_gradients(cotangent, *arrays, operands, *ctx.options)
    gradients = (g if needed else None for g, needed in zip(found, needs, strict=True))
    return *gradients, *ctx.nothing[FACTORS:]


def _register() -> None:
    library = torch.library.Library("xentx", "FRAGMENT")
    torch.library._keep_alive.append(library)
    tags = (torch.Tag.pt2_compliant_tag,)
    results = "(Tensor, Tensor, Tensor"
    arguments = f"{_ARRAYS}, {_OPTIONS}"
    library.define(f"linear_loss({arguments}) -> {results}, Tensor)", tags=tags)
    library.define(f"linear_gradients(Tensor cotangent, {arguments}) -> {results})", tags=tags)
    library.impl("linear_loss", _loss, "CompositeExplicitAutograd")
    library.impl("linear_gradients", _gradients, "CompositeExplicitAutograd")
    torch.library.register_fake("xentx::linear_loss", _loss_shapes, lib=library)
    torch.library.register_fake("xentx::linear_gradients", _gradients_shapes, lib=library)
    torch.library.register_autograd(
        "xentx::linear_loss", _pull_back, setup_context=_save, lib=library
    )


if not hasattr(torch.ops.xentx, "linear_loss"):
    _register()
