"""The core's derivatives as a torch.autograd.Function."""

from dataclasses import replace
from typing import Any

import torch

from xentx._backend import Operation
from xentx._core._spec import LossSpec
from xentx_torch import _private
from xentx_torch._distributed import namespace

Array = torch.Tensor


class _Attached(torch.autograd.Function):
    """Value of an operation, followed by its residuals, which only the backward uses.

    setup_context and a generated vmap rule support torch.func.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(operation: Operation, spec: LossSpec, *arrays: Array | None) -> tuple[Array, ...]:
        own = replace(spec, final=True)
        value, residuals = operation.forward(namespace(arrays[0]), own, *arrays)
        return value, *residuals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.operation, ctx.spec, *arrays = inputs
        _, *residuals = output
        ctx.count = len(arrays)
        ctx.save_for_backward(*arrays, *residuals)
        ctx.mark_non_differentiable(*residuals)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Array | None, *_: None) -> tuple[Array | None, ...]:
        if cotangent is None:
            return (None,) * (2 + ctx.count)
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes it only once
        arrays, residuals = saved[: ctx.count], saved[ctx.count :]
        xp = namespace(arrays[0])
        if torch.is_grad_enabled():
            # This gradient will be differentiated. The residuals were saved as constants, so they
            # are computed again from the logits, with operations that autograd records.
            _, residuals = ctx.operation.forward(xp, ctx.spec, *arrays)
        needs = ctx.needs_input_grad[2:]
        gradients = ctx.operation.pullback(xp, ctx.spec, arrays, residuals, cotangent, needs)
        return None, None, *gradients


_apply = _private.plain_apply(_Attached)


def attach(operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]) -> Array:
    """Value of the operation, differentiable to any order and by torch.func."""
    observed = _private.needs_traceable_ops()
    plain = (
        (not observed or torch.compiler.is_compiling())
        and not any(a is not None and a.requires_grad for a in arrays)
    ) or (observed and (_private.in_forward_mode() or _private.is_tracing()))
    if plain:
        # With a Function, PyTorch returns 0 for some second derivatives of nested jvps, and fails
        # for others. torch.compile calls a Function with one argument too many if no argument
        # requires a gradient. torch.jit.trace cannot record a Function. If no gradient is required,
        # a Function takes longer than a small problem. In these cases the core's expression is
        # used.
        own = spec if observed else replace(spec, final=True)
        return operation.forward(namespace(arrays[0]), own, *arrays)[0]
    apply = _Attached.apply if observed else _apply
    value: Array = apply(operation, spec, *arrays)[0]  # type: ignore[no-untyped-call]
    return value
