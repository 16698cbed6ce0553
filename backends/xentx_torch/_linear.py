"""PyTorch's `linear_cross_entropy`: tiles of its tensors, autograd and torch.compile.

For plain autograd, the gradients of a reduced loss are computed together with its value. Compilers
call this as an operator. torch.func, forward mode and other tracers get the plain expression with
all logits. A backward that is differentiated gets the plain expression chunk by chunk.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from xentx import _calls, _linear
from xentx._calls import Linear, in_places
from xentx._core._spec import OPERAND, OPTIONS, decode, encode
from xentx._core.tiles import Tiles
from xentx_torch import _arrays, _distributed, _kernel, _plans, _private

Array = torch.Tensor
NumPyArray = np.ndarray[Any, Any]
Arrays = tuple[Any, ...]
# Hidden, head and bias: their gradients are computed without autodiff.
FACTORS = 3


class TorchTiles(Tiles):
    """Tensors, multiplied and accumulated in place."""

    def logits(self, hidden: Array, head: Array, bias: Array | None) -> Array:
        return hidden @ head.T if bias is None else torch.addmm(bias, hidden, head.T)

    def add_product(self, x: Array, slope: Array, hidden: Array) -> Array:
        return x.addmm_(slope.T, hidden)


_TILES = TorchTiles(_distributed.NAMESPACE)


def tiles(array: Array) -> Tiles:
    """Return the tiles of tensors."""
    xp = _distributed.namespace(array)
    return _TILES if xp is _TILES.xp else TorchTiles(xp)


def _is_whole(array: Array) -> bool:
    """Whether all logits are computed at once: for tracers and for DTensors."""
    return _kernel.needs_traceable_ops() or _distributed.namespace(array) is not _TILES.xp


def view(array: Array) -> NumPyArray | None:
    """Return the memory of a plain tensor. bfloat16 is copied to float32, for reading only."""
    if not _plans.is_plain(array) or _kernel.needs_traceable_ops():
        return None
    seen = array.detach()
    return (seen.float() if seen.dtype == torch.bfloat16 else seen).numpy()


threads = torch.get_num_threads


def attach(linear: Linear, arrays: Arrays) -> Array:
    """Value of the problem, differentiable by every array and to any order."""
    others = arrays[FACTORS:]
    if torch.compiler.is_compiling() and not any(a is not None and a.requires_grad for a in others):
        return _by_operator(linear, arrays)
    with as_they_are(arrays[0]):
        return _attach(linear, arrays)


def _attach(linear: Linear, arrays: Arrays) -> Array:
    if _is_whole(arrays[0]):
        return _linear.plain(linear, arrays)
    if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in arrays):
        value: Array = _Attached.apply(linear, *arrays)  # type: ignore[no-untyped-call]
        return value
    with torch.no_grad():
        return _linear.solve(linear, arrays)


def solve_with_gradients(
    linear: Linear, arrays: Arrays, cotangent: Array | None, needs: Sequence[bool]
) -> tuple[Array, _linear.LinearGradients[Array]]:
    """Value and gradients. They are differentiable if an argument requires a gradient."""
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
    found = torch.autograd.grad(value, wanted, seed, create_graph=True)
    places = (need and a is not None for a, need in zip(arrays, needs, strict=False))
    return value, _linear.LinearGradients(*in_places(found, places))


def by_chunks(
    function: Callable[..., tuple[Array, ...]],
    size: int,
    mapped: tuple[Array, ...],
    whole: Arrays,
) -> tuple[Array, ...]:
    """Join ``function(*chunks of mapped, *whole)``. Only the inputs are kept for the backward."""
    if _is_whole(mapped[0]):
        return function(*mapped, *whole)
    if torch.is_grad_enabled() and mapped[0].shape[0] > size:
        function = functools.partial(checkpoint, function, use_reentrant=False)
    return _linear.by_chunks(_TILES, function, size, mapped, whole)


def as_they_are(array: Array | None) -> AbstractContextManager[Any]:
    """Return a context without autocast, which would multiply float32 operands in bfloat16."""
    device = "cpu" if array is None else array.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class _Attached(torch.autograd.Function):
    """The value, and if possible the gradients of hidden, head and bias from the same pass."""

    @staticmethod
    def forward(ctx: Any, linear: Linear, *arrays: Array | None) -> Array:
        needs = ctx.needs_input_grad[1:]
        ctx.linear = linear
        ctx.save_for_backward(*arrays)
        # If saved tensors are packed, as in checkpointing, memory matters more than time.
        early = (
            linear.grads_in_forward
            and not any(needs[FACTORS:])
            and _private.saved_tensors_hooks(False) is None  # noqa: FBT003
        )
        if not early:
            return _linear.solve(linear, arrays)
        value, gradients = _linear.solve_with_gradients(linear, arrays, None, (*needs[:3], False))
        ctx.gradients = gradients
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        arrays, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        # Removed, so that no reference remains. Only one of several threads gets it.
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
    """Gradients with respect to all arrays that need one, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            arrays = tuple(
                None if a is None else a.detach().requires_grad_(needed)
                for a, needed in zip(arrays, needs, strict=True)
            )
        wanted = [a for a, needed in zip(arrays, needs, strict=True) if needed]
        value = _linear.plain(linear, arrays)
        found = torch.autograd.grad(value, wanted, cotangent, create_graph=again)
    return list(in_places(found, needs))


# For compilers: an operator with the gradients among its results, and one for any cotangent.


def _by_operator(linear: Linear, arrays: Arrays) -> Array:
    spec = linear.kind.spec
    given = dict(zip(spec.operands, arrays[_FIXED:], strict=True))
    value: Array = torch.ops.xentx.linear_loss(
        *arrays[:_FIXED],
        *(given.get(name) for name in OPTIONS),
        encode(spec, reduction=linear.reduction, ignore_index=None),
        spec.ignore_index,
        linear.chunk or 0,
        [array is not None and array.requires_grad for array in arrays[:FACTORS]],
    )[0]
    return value


def _problem_of(arrays: Arrays, options: Sequence[Any]) -> tuple[Linear, Arrays]:
    """Rebuild the checked call from an operator's arguments."""
    operands = arrays[_FIXED:]
    text, ignore_index, chunk = options
    given = [name for name, array in zip(OPTIONS, operands, strict=True) if array is not None]
    fields = {**decode(text), **dict.fromkeys(given, OPERAND), "ignore_index": ignore_index}
    linear = _calls.linear_of(
        _arrays.BACKEND,
        arrays[:_FIXED],
        fields,
        reduction=fields.get("reduction", "none"),
        chunk=chunk or None,
    )
    return linear, (*arrays[:_FIXED], *(array for array in operands if array is not None))


_ARRAYS = (
    "Tensor hidden, Tensor head, Tensor? bias, Tensor target, Tensor? weight, "
    "Tensor? sample_weight, Tensor? normalizer, Tensor? reference_bias, "
) + ", ".join(f"Tensor? {name}" for name in OPTIONS)
# The options that are numbers are in the text.
_OPTIONS = "str options, SymInt? ignore_index, int chunk, bool[] needs"
_FIXED = 8
_COUNT = _FIXED + len(OPTIONS)


def _loss(*args: Any) -> tuple[Array, ...]:
    """Value, and the gradients for a cotangent of 1 if they are computed in the forward."""
    *options, needs = args[_COUNT:]
    linear, arrays = _problem_of(args[:_COUNT], options)
    if not (linear.grads_in_forward and any(needs)):
        return _linear.solve(linear, arrays), *_or_nothing((None,) * FACTORS, arrays[0])
    value, gradients = _linear.solve_with_gradients(linear, arrays, None, (*needs, False))
    return value, *_or_nothing(gradients[:FACTORS], arrays[0])


def _loss_shapes(*args: Any) -> tuple[Array, ...]:
    *options, needs = args[_COUNT:]
    linear, arrays = _problem_of(args[:_COUNT], options)
    shape = linear.rows if linear.reduction == "none" else ()
    value = arrays[0].new_empty(cast("Sequence[int]", shape), dtype=linear.dtype)
    return value, *_shapes(arrays, [linear.grads_in_forward and needed for needed in needs])


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
    """Replace None by empty tensors, because an operator must return tensors."""
    assert like is not None  # noqa: S101 -- for the type checker
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
    ctx.options = inputs[_COUNT:]
    ctx.save_for_backward(*inputs[:_COUNT], *output[1:])
    ctx.set_materialize_grads(False)


def _pull_back(ctx: Any, cotangent: Array | None, *_: Array | None) -> tuple[Array | None, ...]:
    nothing = (None,) * (_COUNT + len(ctx.options))
    if cotangent is None:
        return nothing
    arrays, known = ctx.saved_tensors[:_COUNT], ctx.saved_tensors[_COUNT:]
    *options, needs = ctx.options
    if _problem_of(arrays, options)[0].grads_in_forward:
        found = [(gradient * cotangent).to(gradient.dtype) for gradient in known]
    else:
        found = torch.ops.xentx.linear_gradients(cotangent, *arrays, *ctx.options)
    gradients = (g if needed else None for g, needed in zip(found, needs, strict=True))
    return *gradients, *nothing[FACTORS:]


def _register() -> None:
    library, tags = torch.library, (torch.Tag.pt2_compliant_tag,)
    results = "(Tensor, Tensor, Tensor"
    arguments = f"{_ARRAYS}, {_OPTIONS}"
    table = (
        ("xentx::linear_loss", f"({arguments}) -> {results}, Tensor)", _loss, _loss_shapes),
        (
            "xentx::linear_gradients",
            f"(Tensor cotangent, {arguments}) -> {results})",
            _gradients,
            _gradients_shapes,
        ),
    )
    for name, schema, computed, shapes in table:
        library.define(name, schema, tags=tags)
        library.impl(name, "default", computed)
        library.register_fake(name, shapes)
    library.register_autograd("xentx::linear_loss", _pull_back, setup_context=_save)


if not hasattr(torch.ops.xentx, "linear_loss"):
    _register()
