"""The CPU kernel under PyTorch: its autograd, torch.func, torch.compile and torch.export.

There are two ways to the kernel. Plain tensors in plain eager mode take `_Eager`, an
autograd.Function in the older of PyTorch's two styles: the newer one, and the dispatcher, each cost
more than a small problem does. What traces or transforms takes the operators of `_operators`.
Even the checks cost more: what passed them once is known again by its form, without them.

The kernel has the value and its gradient by the logits. Derivatives by the other arrays, of second
order and in forward mode are the portable core's, and so is everything that is no dense tensor on
the CPU.

Nothing is saved beside the arrays but the gradient for a cotangent of 1, where the value's own pass
made it. The backward hands that over with no reference left, so that it becomes a leaf's ``grad``
without a copy. For any other cotangent the kernel starts from the logits again: a product with the
saved gradient would round twice.
"""

from collections.abc import Sequence
from typing import Any

import torch

from xentx import _evaluate
from xentx._backend import FUNCTIONS
from xentx._calls import Kind, Problem, impossible
from xentx._core._spec import OPTIONS
from xentx._core.per_row import REAL_FIELDS
from xentx._kernel_engine import KERNEL, NAME
from xentx_torch import _arrays, _operators, _plans, _private
from xentx_torch._operators import Gradients
from xentx_torch._plans import Array, Arrays, Ready

# Fewer logits than that are computed sooner by what a compiler makes of the portable core than by
# an operator that it has to call.
OPERATOR_PAYS = 100_000


def unusable() -> str | None:
    """Say why the kernel serves no tensor: every version of PyTorch is served."""
    return None


def declines(array: Array) -> str | None:
    """Say why the kernel computes no loss of `array`, in the order in which it is looked at."""
    if array.device.type != "cpu":
        return f"the tensor is on device {array.device}; the CPU kernel runs on the CPU"
    if array.layout is not torch.strided:
        return (
            f"the tensor has layout {array.layout}; the CPU kernel takes dense tensors "
            "(hint: array.to_dense())"
        )
    if not _operators.takes((array,)):
        return (
            f"the tensor is a {type(array).__qualname__}, a subclass of torch.Tensor; the CPU "
            "kernel takes torch.Tensor and torch.nn.Parameter "
            "(hint: array.as_subclass(torch.Tensor))"
        )
    if array.is_neg():
        return (
            "the tensor is a view that negates its memory; the CPU kernel reads the memory "
            "(hint: array.resolve_neg())"
        )
    return None


def solve(kind: Kind, arrays: Arrays) -> Array | None:
    """Value, differentiable to any order, in both modes, and by torch.func; None to decline."""
    if needs_traceable_ops():
        return _operators.forward(kind.spec, arrays) if _suits_operators(kind, arrays) else None
    ready = _plans.prepare(kind.plans, kind.spec, arrays)
    return None if ready is None else _run((kind, ready), arrays)


Known = tuple[Kind, Ready]


def _run(known: Known, arrays: Arrays) -> Array:
    """Value of plain tensors in plain eager mode. The last ones of `Arrays` may be left out."""
    if _is_grad_enabled():
        for array in arrays:  # and not any(), which takes longer than all else that decides here
            if array is not None and array.requires_grad:
                value: Array = _eager(known, *arrays)
                return value
    kind, ready = known
    value = ready.empty_value(arrays[0])
    if ready.run(arrays, None, value, None) >= 0:
        return _evaluate.portable(kind, _all(arrays))  # which says what is wrong with the target
    return value


def _all(given: Sequence[Any]) -> tuple[Any, ...]:
    return (*given, None, None, None, None)[:5]


def no_calls() -> Any:
    """What is known of calls, by their form: nothing yet, and never anything without a kernel."""
    asks = torch.is_grad_enabled, torch.get_num_threads, torch.empty_like
    return None if KERNEL is None else KERNEL.Calls(_plans.TYPES, *asks)


_calls = no_calls()


def lookup(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array | None:
    """Value of a call in plain eager mode like one that is stored; a node, for tracers."""
    if _is_dynamo_compiling():
        node: Array = _in_graph(function.name, *args, **kwargs)
        return node
    if _calls is not None and not needs_traceable_ops():
        found: Array | Known | None = _calls.lookup(function, args, kwargs)
        if found is not None:
            return _run(found, args) if type(found) is tuple else found  # type: ignore[return-value]
    if args and isinstance(args[0], torch.fx.Proxy) and function.public is not None:
        proxy: Any = args[0].tracer.create_proxy("call_function", function.public, args, kwargs)
        return proxy
    return None


def store(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Problem) -> None:
    """Keep what is known of a call whose arrays the kernel took as they were given."""
    kind, arrays = problem
    if (
        _calls is None
        or needs_traceable_ops()
        or not (kind.target_dtype_supported and kind.taken_by(NAME))
    ):
        return
    if any(a is not b for a, b in zip(arrays, _all(args), strict=True)):
        return
    ready = _plans.prepare(kind.plans, kind.spec, arrays)
    if ready is not None:
        simple = ready.copied is None and ready.scalar is not None
        how = (ready.plan, ready.scalar) if simple else (None, None)
        _calls.remember(function, args, kwargs, (kind, ready), *how)


def solve_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: Array | None, *, overwrite: bool = False
) -> tuple[Array, Array] | None:
    """Value and gradient, in one pass if neither is to be differentiated; None to decline."""
    spec, logits = kind.spec, _plans.first(arrays)
    observed = needs_traceable_ops()
    ready = None if observed else _plans.prepare(kind.plans, spec, arrays)
    if ready is None and not (observed and _suits_operators(kind, arrays)):
        return None
    inputs = (*arrays, cotangent)
    if (
        ready is None
        or (cotangent is not None and not _plans.is_plain(cotangent))
        or (torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs))
    ):
        found = solve(kind, arrays)
        if found is None:
            return None
        seed = torch.ones_like(found) if cotangent is None else cotangent
        by_logits = _operators.pull_back(spec, 0, arrays, seed, _BY_LOGITS)[0]
        return found, _plans.first((by_logits,))
    value = ready.empty_value(logits)
    if not kind.operation.IS_ROWWISE:
        ready.run(arrays, None, value, None)
        seed = torch.ones_like(value) if cotangent is None else cotangent
        return value, _plans.pull(kind.plans, spec, arrays, seed)
    in_place = overwrite and ready.gradient_strides is None
    gradient = logits if in_place else ready.empty_gradient(logits)
    given = None if cotangent is None else _plans.seed(spec, arrays, cotangent)
    wrong = ready.run(arrays, given, value, gradient)
    return (value, gradient) if wrong < 0 else None


def row_stats(kind: Kind, arrays: Arrays) -> tuple[Array, ...] | None:
    """Fields of RowStats in plain eager mode; None to decline: what is observed, to the core."""
    if needs_traceable_ops():
        return None
    plans = kind.plans.setdefault("row_stats", {})
    ready = _plans.prepare(plans, kind.spec, arrays, stats=True)
    if ready is None:
        return None
    fields = ready.empty_fields(arrays[0])
    if ready.run(arrays, None, fields, None) >= 0:
        return None
    if not _is_grad_enabled() or not any(a is not None and a.requires_grad for a in arrays):
        return fields
    differentiable: tuple[Array, ...] = _rows((kind, fields), *arrays)
    return differentiable


# Names of their own, since a step on the way to them takes as long as their answer.
_is_one: Any = getattr(KERNEL, "is_one", None)
_is_compiling = torch.compiler.is_compiling
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_saved_tensors_hooks = _private.saved_tensors_hooks
needs_traceable_ops = _private.needs_traceable_ops


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
    if _private.in_forward_mode() or _private.is_tracing():
        return False
    return not _has_impossible(kind, arrays)


def _has_impossible(kind: Kind, arrays: Arrays) -> bool:
    """Whether class indices can be seen, and one of them is wrong: the core raises that error."""
    target = arrays[1]
    if target is None or kind.spec.soft or not kind.backend.is_concrete(target):
        return False
    return bool(impossible(kind.backend.to_numpy(target), kind.spec).any())


# Numbers that a graph can take as arrays.
_SCALARS = frozenset(("normalizer", *OPTIONS))


def _dynamic(name: str, value: Any, like: Array) -> Any:
    """Let a number that Dynamo holds to be dynamic stay so, where the loss can take it.

    An array stands for it. It is made by a product, which compilers know to be one of the number.
    Others are asked for, which makes their value a condition of the graph.
    """
    if not isinstance(value, torch.SymInt | torch.SymFloat):
        return value
    if name in _SCALARS:
        wide = torch.float64 if _arrays.BACKEND.has_float64(like) else torch.float32
        one: Any = torch.ones((), dtype=wide, device=like.device)
        return one * value
    if name == "ignore_index":
        return value
    return int(value) if isinstance(value, torch.SymInt) else float(value)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _in_graph(name: str, *args: Any, **kwargs: Any) -> Array:
    """One of the public functions as a node of Dynamo's graph, for what comes after it to trace.

    Were it Dynamo that traced it, each call of what it compiled would first look whether all that
    the checks on the way read is as it was, which takes longer than a small problem.
    """
    kwargs = {key: _dynamic(key, value, args[0]) for key, value in kwargs.items()}
    try:
        value: Array = FUNCTIONS[name].compute(_arrays.BACKEND, *args, **kwargs)
    except (TypeError, ValueError) as error:
        if not any(isinstance(a, _private.STAND_INS) for a in args):
            raise
        # Which makes Dynamo leave the call to eager mode, where the error is raised as it is.
        raise NotImplementedError(str(error)) from error
    return value


class _Eager(torch.autograd.Function):
    """The value of plain tensors in plain eager mode."""

    @staticmethod
    def forward(ctx: Any, known: Known, *arrays: Array | None) -> Array:
        kind, ready = known
        logits = arrays[0]
        value, gradient = ready.empty_value(logits), None
        # Where saved tensors are packed, as in checkpointing, memory matters more than time, and
        # the gradient, which is not saved as a tensor, would not be packed.
        if (
            ctx.needs_input_grad[1]
            and sum(ctx.needs_input_grad) == 1
            and ready.scalar is not None
            and _saved_tensors_hooks(False) is None  # noqa: FBT003
        ):
            gradient = ready.empty_gradient(logits)
        ctx.save_for_backward(*arrays)
        if ready.run(arrays, None, value, gradient) >= 0:
            return _evaluate.portable(kind, _all(arrays))  # which says what is wrong
        ctx.kind, ctx.gradient = kind, gradient
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Gradients:
        # Even where they are not used: this raises if they were modified in place, or are freed.
        arrays = ctx.saved_tensors
        # Who transforms or traces the 1 that can be read in memory has nothing to see: the gradient
        # is a constant like it. But a compiler must not meet this reading, nor a tangent be lost.
        if not (_is_compiling() or _is_grad_enabled() or _private.in_forward_mode()) and _is_one(
            _plans.TYPES, cotangent
        ):
            # Taken so that no reference is left, and by one thread of several.
            gradient = ctx.__dict__.pop("gradient", None)
            if gradient is not None:
                return None, gradient, None, None, None, None
        arrays, needs = _all(arrays), _all(ctx.needs_input_grad[1:])
        spec = ctx.kind.spec
        if (
            _is_grad_enabled()
            or needs_traceable_ops()
            or not _plans.is_plain(cotangent)
            # That of is_grads_batched is neither functorch's nor another type, but not in memory.
            or not _private.has_storage(cotangent)
            or any(needs[1:])
        ):
            return None, *_operators.pull_back(spec, 0, arrays, cotangent, needs)
        gradient = ctx.__dict__.pop("gradient", None)
        gradient = _plans.pull(ctx.kind.plans, spec, arrays, cotangent, gradient)
        return None, gradient, None, None, None, None


class _Rows(torch.autograd.Function):
    """Fields of RowStats, which are computed, in plain eager mode."""

    @staticmethod
    def forward(
        ctx: Any, known: tuple[Kind, tuple[Array, ...]], *arrays: Array | None
    ) -> tuple[Array, ...]:
        ctx.kind, fields = known
        ctx.save_for_backward(*arrays)
        ctx.mark_non_differentiable(*fields[REAL_FIELDS:])
        ctx.set_materialize_grads(False)
        return fields

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Gradients:
        arrays, needs, seeds = ctx.saved_tensors, ctx.needs_input_grad[1:], cotangents[:REAL_FIELDS]
        given = [seed for seed in seeds if seed is not None]
        if not given:
            return (None,) * (1 + len(arrays))
        if (
            _is_grad_enabled()
            or needs_traceable_ops()
            or any(needs[1:])
            or not all(_plans.is_plain(seed) and _private.has_storage(seed) for seed in given)
        ):
            return None, *_operators.pull_back_stats(ctx.kind, arrays, seeds, needs)
        plans = ctx.kind.plans["row_stats"]
        gradient = _plans.pull_stats(plans, ctx.kind.spec, arrays, seeds)
        return None, gradient, *(None for _ in arrays[1:])


_BY_LOGITS = (True, False, False, False, False)

# torch.func doesn't come here.
_eager = _private.plain_apply(_Eager)
_rows = _private.plain_apply(_Rows)
