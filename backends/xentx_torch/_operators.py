"""The kernel as operators that PyTorch can see: ``xentx::forward`` and ``xentx::backward``.

Compilers call them as operators: their shapes can be inferred, and their results are contiguous
and share no memory with the arguments. Their derivatives are registered by
`torch.library.register_autograd`, which torch.func does not support. Their vmap rule makes the
mapped axis a group of the kernel. Under torch.func, an autograd.Function with the same rules calls
each of them.

The backward computes the gradient from the logits. It could not return a gradient saved by the
forward, because an operator must not return its arguments, and a copy takes as long as computing it
again.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from xentx import _calls, _evaluate
from xentx._calls import Kind
from xentx._core._spec import LossSpec, decode, encode
from xentx_torch import _arrays, _plans, _private
from xentx_torch._plans import Array, Arrays

Function = Callable[..., Any]
Gradients = tuple[Array | None, ...]

_ARRAYS = "Tensor logits, Tensor? target, Tensor? weight, Tensor? sample_weight, Tensor? normalizer"
_COUNT = 5
# What is no array: the ignored index apart, which may be a symbol.
_SPEC = "str options, SymInt? ignore_index"


def forward(spec: LossSpec, arrays: Arrays) -> Array:
    """Value of a loss. The row of an impossible target is NaN."""
    return _call(_Forward, *arrays, 0, *_written(spec))


def pull_back(
    spec: LossSpec, groups: int, arrays: Arrays, cotangent: Array, needs: Sequence[bool]
) -> Gradients:
    """Gradients with respect to all arrays that need one, which can be differentiated again."""
    by_kernel = needs[0] and not _private.in_forward_mode() and takes((cotangent, *arrays))
    by_core = [needs[0] and not by_kernel, *needs[1:]]
    gradients: list[Array | None] = [None] * _COUNT
    if any(by_core):
        gradients = list(vjp(_core(spec, groups), arrays, by_core, cotangent))
    if by_kernel:
        gradients[0] = _call(_Backward, cotangent, *arrays, groups, *_written(spec))
    return tuple(gradients)


def pull_back_stats(
    kind: Kind, arrays: Arrays, cotangents: Sequence[Array | None], needs: Sequence[bool]
) -> Gradients:
    """Gradients of row statistics by the core, which can be differentiated again."""
    given = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def fields(*arrays: Array | None) -> tuple[Array, ...]:
        found = _evaluate.portable_row_stats(kind, arrays)
        return tuple(found[i] for i in given)

    return vjp(fields, arrays, needs, tuple(cotangents[i] for i in given))


def takes(arrays: Arrays) -> bool:
    """Whether the operators support these arrays, which may be fake tensors."""
    return all(
        array is None
        or (type(array) in _TYPES and array.device.type == "cpu" and array.layout is torch.strided)
        for array in arrays
    )


_TYPES = _plans.PLAIN | set(_private.STAND_INS)


def _written(spec: LossSpec) -> tuple[str, Any]:
    """Return the spec as the arguments of an operator."""
    return encode(spec, ignore_index=None), spec.ignore_index


def _read(logits: Array, groups: int, options: str, ignore_index: Any) -> LossSpec:
    """Rebuild the spec from the arguments of an operator."""
    fields = {**decode(options), "ignore_index": ignore_index}
    return _calls.spec_of(_arrays.BACKEND, logits, fields, groups)


# The operators


def _forward_on_cpu(*args: Any) -> Array:
    arrays, static = args[:_COUNT], args[_COUNT:]
    spec, plans = _known(arrays, static)
    ready = _plans.prepare(plans, spec, arrays, groups=static[0], in_order=True)
    assert ready is not None  # noqa: S101 -- the caller has checked this
    value = ready.empty_value(_plans.first(arrays))
    ready.run(arrays, None, value, None)
    return value


def _backward_on_cpu(cotangent: Array, *args: Any) -> Array:
    arrays, static = args[:_COUNT], args[_COUNT:]
    spec, plans = _known(arrays, static)
    return _plans.pull(plans, spec, arrays, cotangent, groups=static[0], in_order=True)


# The spec of an operator, and its plans, for arrays of certain shapes and dtypes. Their number is
# limited.
_KNOWN: dict[Hashable, tuple[LossSpec, dict[Hashable, Any]]] = {}
_MOST_KNOWN = 1024


def _known(arrays: Arrays, static: tuple[Any, ...]) -> tuple[LossSpec, dict[Hashable, Any]]:
    logits = _plans.first(arrays)
    dtypes = tuple(None if array is None else array.dtype for array in arrays)
    key = (static, logits.shape, dtypes)
    known = _KNOWN.get(key)
    if known is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        known = _KNOWN[key] = (_read(logits, *static), {})
    return known


def _forward_shape(*args: Any) -> Array:
    logits, groups = args[0], args[_COUNT]
    spec = _read(logits, *args[_COUNT:])
    shape = logits.shape
    if _calls.OPERATIONS[spec.operation].IS_ROWWISE:
        axis = groups + spec.axis
        rows = (*shape[:axis], *shape[axis + 1 :])
        shape = rows if spec.reduction == "none" else rows[:groups]
    value: Array = logits.new_empty(shape)
    return value


def _backward_shape(cotangent: Array, logits: Array, *args: Any) -> Array:  # noqa: ARG001
    return logits.new_empty(logits.shape)


# Derivatives and vmap rules


class _Forward(torch.autograd.Function):
    """The gradients with respect to the logits, by the other operator, and the other arrays."""

    @staticmethod
    def forward(*args: Any) -> Array:
        value: Array = torch.ops.xentx.forward.default(*args)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:  # noqa: ARG004
        _save(ctx, inputs, _COUNT)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Gradients:
        arrays, groups = ctx.saved_tensors, ctx.static[0]
        spec = _read(arrays[0], *ctx.static)
        needs = ctx.needs_input_grad[:_COUNT]
        gradients = pull_back(spec, groups, arrays, cotangent, needs)
        return *gradients, *(None for _ in ctx.static)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Array, int]:
        return _call(_Forward, *_grouped(info, in_dims, args, _COUNT)), 0


class _Backward(torch.autograd.Function):
    """The second derivatives, by differentiating the gradients of the portable core."""

    @staticmethod
    def forward(*args: Any) -> Array:
        gradient: Array = torch.ops.xentx.backward.default(*args)
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:  # noqa: ARG004
        _save(ctx, inputs, 1 + _COUNT)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Gradients:
        core = _core(_read(ctx.saved_tensors[1], *ctx.static), ctx.static[0])

        def gradient(seed: Array, *arrays: Array | None) -> Array | None:
            return vjp(core, arrays, [True], seed)[0]

        needs = ctx.needs_input_grad[: 1 + _COUNT]
        gradients = vjp(gradient, ctx.saved_tensors, needs, cotangent)
        return *gradients, *(None for _ in ctx.static)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Array, int]:
        return _call(_Backward, *_grouped(info, in_dims, args, 1 + _COUNT)), 0


def _call(function: type[torch.autograd.Function], *args: Any) -> Array:
    """Call an operator. Under torch.func, its Function is called."""
    call: Any = function.apply if _private.are_transforms_active() else function.forward
    value: Array = call(*args)
    return value


def _save(ctx: Any, inputs: tuple[Any, ...], count: int) -> None:
    ctx.save_for_backward(*inputs[:count])
    ctx.static = inputs[count:]


def _grouped(info: Any, in_dims: tuple[int | None, ...], args: Sequence[Any], count: int) -> Any:
    """Make the mapped axis of an operator's first `count` arguments a group, without copies."""
    arrays = (
        None
        if array is None
        else array.expand(info.batch_size, *array.shape)
        if dim is None
        else array.movedim(dim, 0)
        for array, dim in zip(args[:count], in_dims, strict=False)
    )
    return *arrays, args[count] + 1, *args[count + 1 :]


def _core(spec: LossSpec, groups: int) -> Function:
    """Portable core's value as a function of the arrays, mapped over the groups."""

    def function(*arrays: Array | None) -> Array:
        value: Array = _evaluate.portable(Kind(_arrays.BACKEND, spec), arrays)
        return value

    def mapped(inner: Function) -> Function:
        def outer(*arrays: Array | None) -> Any:
            dims = tuple(None if array is None else 0 for array in arrays)
            return torch.vmap(inner, in_dims=dims)(*arrays)

        return outer

    for _ in range(groups):
        function = mapped(function)
    return function


def vjp(function: Function, arrays: Arrays, needs: Sequence[bool], cotangent: Any) -> Gradients:
    """Pull back to the arrays that need it, by torch.func, which can be nested."""
    chosen = [i for i, needed in enumerate(needs) if needed]

    def of_chosen(*values: Array) -> Any:
        return function(*_calls.replaced(arrays, chosen, values))

    pull = torch.func.vjp(of_chosen, *(arrays[i] for i in chosen))[1]
    found = dict(zip(chosen, pull(cotangent), strict=True))
    return tuple(found.get(i) for i in range(len(arrays)))


def _register() -> None:
    """Define the operators until the process ends, because compiled code may call them."""
    table = (
        ("forward", _ARRAYS, _forward_on_cpu, _forward_shape, _Forward),
        ("backward", f"Tensor cotangent, {_ARRAYS}", _backward_on_cpu, _backward_shape, _Backward),
    )
    library = torch.library
    for name, arrays, on_cpu, shape, rules in table:
        full = f"xentx::{name}"
        schema = f"({arrays}, int groups, {_SPEC}) -> Tensor"
        library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(full, "cpu", on_cpu)
        library.register_fake(full, shape)
        library.register_autograd(full, rules.backward, setup_context=rules.setup_context)
        library.register_vmap(full, rules.vmap)


# Once per process, also if this module is imported again.
if not hasattr(torch.ops.xentx, "forward"):
    _register()
