"""The native kernel under PyTorch: its autograd, torch.func, torch.compile and torch.export.

There are two ways to the kernel. Plain tensors in plain eager mode take `_Eager`, an
autograd.Function in the older of PyTorch's two styles: the newer one, and the dispatcher, each cost
more than a small problem does. What traces or transforms takes the operators of `_operators`.

The kernel has the value and its gradient by the logits. Derivatives by the other arrays, of second
order and in forward mode are the portable core's, and so is everything that is no dense tensor on
the CPU.

Nothing is saved beside the arrays but the gradient for a cotangent of 1, where the value's own pass
made it. The backward hands that over with no reference left, so that it becomes a leaf's ``grad``
without a copy. For any other cotangent the kernel starts from the logits again: a product with the
saved gradient would round twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from xentx import _evaluate, _problem
from xentx._problem import Kind
from xentx_torch import _operators, _plans
from xentx_torch._operators import Gradients
from xentx_torch._plans import Array, Arrays, Ready

# Fewer logits than that are computed sooner by what a compiler makes of the portable core than by
# an operator that it has to call.
OPERATOR_PAYS = 100_000


def takes(array: Array) -> bool:
    """Whether the kernel computes losses of `array`."""
    return _operators.takes((array,))


def solve(kind: Kind, arrays: Arrays) -> Array:
    """Value, differentiable to any order, in both modes, and by torch.func."""
    if _is_observed():
        if _suits_operators(kind, arrays):
            return _operators.forward(kind.task, arrays)
        return _evaluate.portable(kind, arrays)
    ready = _plans.prepare(kind.plans, kind.task, arrays)
    if ready is None:
        return _evaluate.portable(kind, arrays)
    if torch.is_grad_enabled() and _requires_grad(arrays):
        value: Array = _eager(kind, ready, *arrays)
        return value
    value = ready.empty_value(_plans.first(arrays))
    if ready.run(arrays, None, value, None) >= 0:
        return _evaluate.portable(kind, arrays)  # which says what is wrong with the target
    return value


def solve_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: object | None
) -> tuple[Array, Array]:
    """Value and gradient by the logits: in one pass, where nobody asks for their derivatives."""
    task, logits = kind.task, _plans.first(arrays)
    observed = _is_observed()
    ready = None if observed else _plans.prepare(kind.plans, task, arrays)
    if ready is None and not (observed and _suits_operators(kind, arrays)):
        return _evaluate.portable_with_gradient(kind, arrays, cotangent)
    seed = None
    if ready is not None:
        value = ready.empty_value(logits)
        if cotangent is not None:
            seed = _problem.cotangent(kind.backend, cotangent, value)
    inputs = (*arrays, seed)
    if (
        ready is None
        or (seed is not None and not _plans.is_plain(seed))
        or (torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs))
    ):
        value = solve(kind, arrays)
        seed = _evaluate.seed_of(kind.backend, cotangent, value)
        by_logits = _operators.pull_back(task, 0, arrays, seed, _BY_LOGITS)[0]
        return value, _plans.first((by_logits,))
    if task.operation == "log_softmax":
        ready.run(arrays, None, value, None)
        seed = torch.ones_like(value) if seed is None else seed
        return value, _plans.pull(kind.plans, task, arrays, seed)
    gradient = ready.empty_gradient(logits)
    if seed is not None:
        seed = _plans.seed(task, arrays, seed)
    if ready.run(arrays, seed, value, gradient) >= 0:
        return _evaluate.portable_with_gradient(kind, arrays, cotangent)
    return value, gradient


def _requires_grad(arrays: Arrays) -> bool:
    # Not any() over all of them: it takes longer than the rest of what decides the way.
    logits, target, weight, sample_weight, normalizer = arrays
    return (
        (logits is not None and logits.requires_grad)
        or (target is not None and target.requires_grad)
        or (weight is not None and weight.requires_grad)
        or (sample_weight is not None and sample_weight.requires_grad)
        or (normalizer is not None and normalizer.requires_grad)
    )


def _is_observed() -> bool:
    """Whether somebody has to see operators: a compiler, a tracer, torch.func, forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def _suits_operators(kind: Kind, arrays: Arrays) -> bool:
    """Whether the operators are the way to have what is observed; else it is the core."""
    logits, *others = arrays
    assert logits is not None  # noqa: S101
    if not _operators.takes(arrays):
        return False
    if torch.compiler.is_compiling() or type(logits) not in _plans.PLAIN:
        # Asking for the size may make it a condition of the graph, which an export can't have.
        large = torch.compiler.is_exporting() or logits.numel() >= OPERATOR_PAYS
        return large and not any(a is not None and a.requires_grad for a in others)
    if forward_ad._current_level >= 0 or torch._C._get_tracing_state() is not None:
        return False
    return not _has_impossible(kind, arrays)


def _has_impossible(kind: Kind, arrays: Arrays) -> bool:
    """Whether class indices can be seen, and one of them is wrong: the core raises that error."""
    target = arrays[1]
    if (
        target is None
        or kind.task.soft
        or torch._C._functorch.is_functorch_wrapped_tensor(target)
        or torch._C._len_torch_dispatch_stack() > 0
    ):
        return False
    with torch._C._DisableFuncTorch():
        wrong = (target < 0) | (target >= kind.spec.classes)
        return bool((wrong & (target != kind.task.ignore_index)).any())


class _Eager(torch.autograd.Function):
    """The value of plain tensors in plain eager mode."""

    @staticmethod
    def forward(ctx: Any, kind: Kind, ready: Ready, *arrays: Array | None) -> Array:
        logits = _plans.first(arrays)
        value, gradient = ready.empty_value(logits), None
        # Where saved tensors are packed, as in checkpointing, memory matters more than time, and
        # the gradient, which is not saved as a tensor, would not be packed.
        if (
            ctx.needs_input_grad[2]
            and ready.scalar is not None
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None  # noqa: FBT003
        ):
            gradient = ready.empty_gradient(logits)
        ctx.save_for_backward(*arrays)
        if ready.run(arrays, None, value, gradient) >= 0:
            return _evaluate.portable(kind, arrays)  # which says what is wrong with the target
        ctx.kind, ctx.gradient = kind, gradient
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Gradients:
        # Even where they are not used: this raises if they were modified in place, or are freed.
        arrays = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        task = ctx.kind.task
        if (
            torch.is_grad_enabled()
            or _is_observed()
            or not _plans.is_plain(cotangent)
            # That of is_grads_batched is neither functorch's nor another type, but not in memory.
            or not torch._C._has_storage(cotangent)
            or needs != _BY_LOGITS
        ):
            return None, None, *_operators.pull_back(task, 0, arrays, cotangent, needs)
        # Taken so that no reference is left, and by one thread of several.
        gradient = ctx.__dict__.pop("gradient", None)
        if gradient is None or cotangent.item() != 1.0:
            gradient = _plans.pull(ctx.kind.plans, task, arrays, cotangent, gradient)
        return None, None, gradient, None, None, None, None


_BY_LOGITS = (True, False, False, False, False)

# What Function.apply does beside this is for torch.func, which doesn't come here.
_eager: Callable[..., Any] = super(torch.autograd.Function, _Eager).apply
