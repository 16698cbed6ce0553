"""The core's derivatives as a torch.autograd.Function."""

from typing import Any

import torch

from xentx._backend import Operation
from xentx._core._spec import Spec
from xentx._namespace import array_namespace

Array = torch.Tensor
NAMESPACE = array_namespace(torch.empty(0))


class _Attached(torch.autograd.Function):
    """Value of an operation, followed by its residuals, which only the backward reads.

    setup_context, a generated vmap rule and jvp make it serve torch.func as well.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(operation: Operation, spec: Spec, *arrays: Array | None) -> tuple[Array, ...]:
        value, residuals = operation.forward(NAMESPACE, spec, *arrays)
        return value, *residuals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.operation, ctx.spec, *arrays = inputs
        _, *residuals = output
        ctx.count = len(arrays)
        ctx.save_for_backward(*arrays, *residuals)
        ctx.save_for_forward(*arrays)
        ctx.mark_non_differentiable(*residuals)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Array | None, *_: None) -> tuple[Array | None, ...]:
        if cotangent is None:
            return (None,) * (2 + ctx.count)
        arrays, residuals = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled():
            # This gradient will be differentiated. The residuals were saved as constants, so they
            # are formed again from the logits, in operations that autograd sees.
            _, residuals = ctx.operation.forward(NAMESPACE, ctx.spec, *arrays)
        needs = ctx.needs_input_grad[2:]
        gradients = ctx.operation.pullback(
            NAMESPACE, ctx.spec, arrays, residuals, cotangent, needs
        )
        return None, None, *gradients

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Array | None, ...]:
        arrays = ctx.saved_tensors[: ctx.count]
        _, residuals = ctx.operation.forward(NAMESPACE, ctx.spec, *arrays)
        tangent = ctx.operation.jvp(NAMESPACE, ctx.spec, arrays, residuals, tangents[2:])
        return tangent, *(None for _ in residuals)


def attach(operation: Operation, spec: Spec, arrays: tuple[Array | None, ...]) -> Array:
    """Value of the operation, differentiable to any order and by torch.func."""
    value: Array = _Attached.apply(operation, spec, *arrays)[0]
    return value
