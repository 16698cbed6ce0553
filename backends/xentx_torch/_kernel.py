"""The CPU kernel under PyTorch: its autograd, torch.func, torch.compile and torch.export.

There are two ways to call the kernel. Plain tensors in eager mode use `_Eager`, an
autograd.Function in the older of PyTorch's two styles. The newer style and the dispatcher each take
more time than a small problem. Tracers and transformations use the operators of `_operators`. The
checks take more time than a small problem too, so checked calls are cached by dtype, shape, strides
and options.

The kernel computes the value and its gradient with respect to the logits. The portable core
computes derivatives with respect to other arrays, of second order and in forward mode, and all
tensors that are not dense or not on the CPU.

Besides the arrays, only the gradient for a cotangent of 1 is saved, if it was computed together
with the value. The backward returns it and keeps no reference, so that it becomes a leaf's ``grad``
without a copy. For another cotangent the kernel computes the gradient again, because the product
with the saved gradient would be rounded twice.
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

# For fewer logits, the compiled portable core is faster than the call of an operator.
OPERATOR_PAYS = 100_000


def unusable() -> str | None:
    """Return None: the kernel supports every version of PyTorch."""
    return None


def declines(array: Array) -> str | None:
    """Return why the kernel computes no loss of `array`, or None."""
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
    """Value, differentiable to any order, in both modes, and by torch.func. None to decline."""
    if needs_traceable_ops():
        return _operators.forward(kind.spec, arrays) if _suits_operators(kind, arrays) else None
    ready = _plans.prepare(kind.plans, kind.spec, arrays)
    return None if ready is None else _run((kind, ready), arrays)


Known = tuple[Kind, Ready]


def _run(known: Known, arrays: Arrays) -> Array:
    """Value of plain tensors in eager mode. The last arrays may be left out."""
    if _is_grad_enabled():
        for array in arrays:  # any() would take longer than the rest
            if array is not None and array.requires_grad:
                value: Array = _eager(known, *arrays)
                return value
    kind, ready = known
    value = ready.empty_value(arrays[0])
    if ready.run(arrays, None, value, None) >= 0:
        return _evaluate.portable(kind, _all(arrays))  # which raises the error for the target
    return value


def _all(given: Sequence[Any]) -> tuple[Any, ...]:
    return (*given, None, None, None, None)[:5]


def no_calls() -> Any:
    """Make an empty cache of calls. Without a kernel it stays empty."""
    asks = torch.is_grad_enabled, torch.get_num_threads, torch.empty_like
    return None if KERNEL is None else KERNEL.Calls(_plans.TYPES, *asks)


_calls = no_calls()


def lookup(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array | None:
    """Value of a call in plain eager mode like one that is stored; a node, for tracers."""
    if _is_dynamo_compiling():
        _allow_in_graph()
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
    """Value and gradient, in one pass if neither is differentiated. None to decline."""
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
    """Fields of RowStats in eager mode. None to decline. The core computes traced calls."""
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


# Module variables, because an attribute look-up takes as long as the call.
_is_one: Any = getattr(KERNEL, "is_one", None)
_is_compiling = torch.compiler.is_compiling
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_saved_tensors_hooks = _private.saved_tensors_hooks
needs_traceable_ops = _private.needs_traceable_ops


def _suits_operators(kind: Kind, arrays: Arrays) -> bool:
    """Whether traced calls use the operators. Otherwise they use the core."""
    logits, *others = arrays
    assert logits is not None  # noqa: S101
    if not _operators.takes(arrays):
        return False
    if torch.compiler.is_compiling() or type(logits) not in _plans.PLAIN:
        # Reading the size may make it a guard of the graph, which an export cannot have.
        large = torch.compiler.is_exporting() or logits.numel() >= OPERATOR_PAYS
        return large and not any(a is not None and a.requires_grad for a in others)
    if _private.in_forward_mode() or _private.is_tracing():
        return False
    return not _has_impossible(kind, arrays)


def _has_impossible(kind: Kind, arrays: Arrays) -> bool:
    """Whether a concrete class index is out of range. The core raises the error."""
    target = arrays[1]
    if target is None or kind.spec.soft or not kind.backend.is_concrete(target):
        return False
    return bool(impossible(kind.backend.to_numpy(target), kind.spec).any())


# Numbers that can be arrays in a graph.
_SCALARS = frozenset(("normalizer", *OPTIONS))


def _dynamic(name: str, value: Any, like: Array) -> Any:
    """Keep a number dynamic in Dynamo's graph, if the loss supports an array for it.

    The array is the product of ones and the number, which compilers support. Other numbers are
    converted, so that their value becomes a guard of the graph.
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


def _in_graph(name: str, *args: Any, **kwargs: Any) -> Array:
    """Call a public function as one node of Dynamo's graph, which is traced later.

    If Dynamo traced the function, each call of the compiled code would check guards for everything
    that the validation reads. This takes longer than a small problem.
    """
    kwargs = {key: _dynamic(key, value, args[0]) for key, value in kwargs.items()}
    try:
        value: Array = FUNCTIONS[name].compute(_arrays.BACKEND, *args, **kwargs)
    except (TypeError, ValueError) as error:
        if not any(isinstance(a, _private.STAND_INS) for a in args):
            raise
        # With this error, Dynamo runs the call in eager mode, which raises the original error.
        raise NotImplementedError(str(error)) from error
    return value


# A decorator would import Dynamo with this module, and Dynamo imports Triton. In one process,
# Triton's import can crash after TensorFlow's.
@_private.called_by_dynamo
def _allow_in_graph() -> None:
    torch.compiler.allow_in_graph(_in_graph)


class _Eager(torch.autograd.Function):
    """The value of plain tensors in eager mode."""

    @staticmethod
    def forward(ctx: Any, known: Known, *arrays: Array | None) -> Array:
        kind, ready = known
        logits = arrays[0]
        value, gradient = ready.empty_value(logits), None
        # If saved tensors are packed, as in checkpointing, memory matters more than time. The
        # gradient would not be packed, because it is not saved as a tensor.
        if (
            ctx.needs_input_grad[1]
            and sum(ctx.needs_input_grad) == 1
            and ready.scalar is not None
            and _saved_tensors_hooks(False) is None  # noqa: FBT003
        ):
            gradient = ready.empty_gradient(logits)
        ctx.save_for_backward(*arrays)
        if ready.run(arrays, None, value, gradient) >= 0:
            return _evaluate.portable(kind, _all(arrays))  # which raises the error
        ctx.kind, ctx.gradient = kind, gradient
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Gradients:
        # Read also if they are not used: it raises if they were modified in place, or freed.
        arrays = ctx.saved_tensors
        # If the cotangent in memory is 1, the gradient is a constant, also under transformations.
        # But a compiler must not trace this, and forward mode needs the tangent.
        if not (_is_compiling() or _is_grad_enabled() or _private.in_forward_mode()) and _is_one(
            _plans.TYPES, cotangent
        ):
            # Removed, so that no reference remains. Only one of several threads gets it.
            gradient = ctx.__dict__.pop("gradient", None)
            if gradient is not None:
                return None, gradient, None, None, None, None
        arrays, needs = _all(arrays), _all(ctx.needs_input_grad[1:])
        spec = ctx.kind.spec
        if (
            _is_grad_enabled()
            or needs_traceable_ops()
            or not _plans.is_plain(cotangent)
            # With is_grads_batched it is a plain tensor without memory.
            or not _private.has_storage(cotangent)
            or any(needs[1:])
        ):
            return None, *_operators.pull_back(spec, 0, arrays, cotangent, needs)
        gradient = ctx.__dict__.pop("gradient", None)
        gradient = _plans.pull(ctx.kind.plans, spec, arrays, cotangent, gradient)
        return None, gradient, None, None, None, None


class _Rows(torch.autograd.Function):
    """Attaches derivatives to computed fields of RowStats, in eager mode."""

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

# Not used under torch.func.
_eager = _private.plain_apply(_Eager)
_rows = _private.plain_apply(_Rows)
