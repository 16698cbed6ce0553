"""The engine: which losses Triton computes for which tensors, and how autograd differentiates them.

A kernel computes one loss for each row. The core reduces the losses with PyTorch operations, which
autograd differentiates. Therefore sample weights and normalizers need no code here. The states of
the rows are saved for the backward pass together with the arrays.

Values on a device are not read, because the host would have to wait for them. A class index that is
out of range makes its row NaN. Triton's interpreter uses tensors on the CPU, and their indices are
checked.

The portable core computes derivatives of second order, in forward mode and with respect to other
arrays than the logits, and whatever is traced.
"""

import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import replace
from typing import Any

import torch

from xentx import _calls, _evaluate
from xentx._backend import Engine
from xentx._calls import Kind, Problem
from xentx._core import cross_entropy, per_row
from xentx._core import reduction as reductions
from xentx._core._spec import LossSpec
from xentx._core.per_row import REAL_FIELDS
from xentx._kernel_engine import is_wanted
from xentx._kernel_engine import takes as kernel_takes
from xentx_torch import _operators, _plans, _private
from xentx_torch._distributed import namespace

Array = torch.Tensor
Arrays = tuple[Array | None, ...]

NAME = "triton"
# Triton decides it when it is imported: kernels of its interpreter run on the CPU, and no others.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DEVICE = "cpu" if IS_INTERPRETED else "cuda"  # as PyTorch names ROCm's too
# Whether class indices are checked.
LOOKS = IS_INTERPRETED
# Limits of a cap and of a temperature, so that quotients by them stay in the range of float32.
_LEAST, _MOST = 2.0**-60, 2.0**60


@functools.cache
def _version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # under another name, such as ROCm's
        return "unknown version"


def engines(adapter: Any) -> tuple[Engine, ...]:
    """Return the engine, reached by this module, as one of a backend's."""
    version = _version()
    asked = is_wanted(NAME)
    if version is None:
        if asked:
            msg = (
                "XENTX_ENGINE: got 'triton', but Triton is not installed (hint: pip install triton)"
            )
            raise ImportError(msg)
        return ()
    if asked is False or (IS_INTERPRETED and not asked):
        return ()
    return (Engine(NAME, adapter, takes, version),)


def takes(spec: LossSpec, target: str | None, has_float64: bool) -> bool:  # noqa: FBT001
    """Whether the kernels support a loss, for `xentx._backend.Engine`."""
    scales = [s for s in (spec.temperature, spec.logit_softcap) if s is not None]
    return (
        spec.operation in ("cross_entropy", "log_softmax")
        and kernel_takes(spec, target, has_float64)
        and all(_LEAST <= scale <= _MOST for scale in scales)
    )


def unusable() -> str | None:
    """Return why Triton is not available, or None if there is a device."""
    if IS_INTERPRETED or torch.cuda.is_available():
        return None
    return "PyTorch sees no CUDA or ROCm device, on which Triton runs"


def declines(array: Array) -> str | None:
    """Return why Triton does not compute losses of `array`."""
    if array.device.type != _DEVICE:
        where = "the CPU" if IS_INTERPRETED else "CUDA and ROCm devices"
        return f"the tensor is on device {array.device}; Triton runs on {where}"
    if not _is_plain(array):
        return (
            f"the tensor is a {type(array).__qualname__}, or a view that is not what its memory "
            "holds; Triton takes dense tensors of torch.Tensor and torch.nn.Parameter"
        )
    return None


def solve(kind: Kind, arrays: Arrays) -> Array | None:
    """Return the value, which autograd differentiates to any order; None to decline."""
    if not _suits(arrays):
        return None
    if not kind.operation.IS_ROWWISE:
        return _log_softmax(kind.spec, arrays[0])
    prepared = _prepare(kind, arrays)
    return _evaluate.finish(kind, prepared, _losses(prepared.spec, *prepared.arrays))


def solve_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: Array | None, *, overwrite: bool = False
) -> tuple[Array, Array] | None:
    """Value and gradient, if neither is to be differentiated; None to decline."""
    inputs = (*arrays, cotangent)
    if not _suits(inputs) or (
        torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs)
    ):
        return None
    if not kind.operation.IS_ROWWISE:
        value = _log_softmax(kind.spec, arrays[0])
        seed = torch.ones_like(value) if cotangent is None else cotangent
        return value, _log_softmax_gradient(kind.spec, _plans.first(arrays), seed)
    prepared = _prepare(kind, arrays)
    spec = prepared.spec
    given = _given(spec, *prepared.arrays)
    found = _launcher().forward(given)
    value = _evaluate.finish(kind, prepared, found.fields[0])
    seed = torch.ones_like(value) if cotangent is None else cotangent
    xp = namespace(given.logits)
    seed = reductions.pullback(
        xp,
        spec,
        seed.to(given.compute),
        prepared.sample_weight,
        kind.spec.reduction,
        prepared.divisor,
    )
    seeds = (_by_row(seed, given),)
    return value, _launcher().gradient(given, found.state, seeds, overwrite=overwrite)


def row_stats(kind: Kind, arrays: Arrays) -> tuple[Array, ...] | None:
    """Fields of RowStats, of which the first four are differentiable; None to decline."""
    spec = kind.spec
    # The log-probability is that of the target without weights and smoothing.
    altered = arrays[2] is not None or spec.label_smoothing != 0.0
    if not _suits(arrays) or (spec.soft and altered):
        return None
    prepared = _prepare(kind, arrays)
    fields = _fields(prepared.spec, *prepared.arrays)
    dtype = _plans.first(arrays).dtype
    rounded = [field.to(dtype) for field in fields[:REAL_FIELDS]]
    return tuple(field.squeeze(spec.axis) for field in (*rounded, *fields[REAL_FIELDS:]))


def _is_plain(array: Array) -> bool:
    """Whether a tensor is described completely by its address and strides."""
    return (
        type(array) in _plans.PLAIN
        and array.device.type == _DEVICE
        and array.layout is torch.strided
        and not array.is_neg()
        and _private.has_storage(array)
    )


def _suits(arrays: Arrays) -> bool:
    """Whether no tracer or transform is active, and all arrays are readable, on one device."""
    if _private.needs_traceable_ops():
        return False
    there = [array for array in arrays if array is not None]
    return all(_is_plain(a) and a.device == there[0].device for a in there)


def _launcher() -> Any:
    """Import what imports Triton."""
    from xentx_torch._triton import _launch  # noqa: PLC0415 -- it takes a second

    return _launch


def _prepare(kind: Kind, arrays: Arrays) -> Any:
    """Lay a problem out for the core. On a GPU, class indices are not checked."""
    return _calls.prepare(Problem(kind, arrays), look=LOOKS)


def _given(spec: LossSpec, logits: Array, target: Array | None, weight: Array | None) -> Any:
    """Convert arrays from the layout of the core to that of the kernels."""
    if target is not None and not spec.soft:
        target = target.squeeze(spec.axis)
    if weight is not None:
        weight = weight.reshape(-1).contiguous()
    return _launcher().Given(spec, logits, target, weight)


def _by_row(cotangent: Array, given: Any) -> Array:
    """Spread a cotangent over the rows, without a copy."""
    shape = list(given.logits.shape)
    shape[given.spec.axis] = 1
    return cotangent.expand(shape).squeeze(given.spec.axis)


def _is_core(cotangents: tuple[Array | None, ...], needs: tuple[bool, ...]) -> bool:
    """Whether the core computes a backward pass."""
    return (
        torch.is_grad_enabled()
        or _private.needs_traceable_ops()
        or any(needs[1:])
        or not all(c is None or _is_plain(c) for c in cotangents)
    )


class _Losses(torch.autograd.Function):
    """A loss for each row, with a class axis of length 1, as the operation of the core."""

    @staticmethod
    def forward(ctx: Any, spec: LossSpec, *arrays: Any) -> Array:
        found = _launcher().forward(_given(spec, *arrays))
        ctx.spec = spec
        ctx.save_for_backward(*arrays, found.state)
        loss: Array = found.fields[0]
        return loss

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        *arrays, state = ctx.saved_tensors
        spec, needs = ctx.spec, ctx.needs_input_grad[1:]
        if _is_core((cotangent,), needs):
            xp, operation = namespace(arrays[0]), _calls.OPERATIONS[spec.operation]
            _, residuals = operation.forward(xp, spec, *arrays)
            found = operation.pullback(xp, spec, tuple(arrays), residuals, cotangent, needs)
            return None, *found
        given = _given(spec, *arrays)
        gradient = _launcher().gradient(given, state, (_by_row(cotangent, given),))
        return None, gradient, None, None


class _Fields(torch.autograd.Function):
    """Fields of RowStats, with a class axis of length 1."""

    @staticmethod
    def forward(ctx: Any, spec: LossSpec, *arrays: Any) -> tuple[Array, ...]:
        found = _launcher().forward(_given(spec, *arrays), fields=True)
        ctx.spec = spec
        ctx.save_for_backward(*arrays, found.state)
        # The order of RowStats: the loss, lse, the log-probability, the entropy.
        ctx.mark_non_differentiable(*found.fields[REAL_FIELDS:])
        ctx.set_materialize_grads(False)
        fields: tuple[Array, ...] = found.fields
        return fields

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> tuple[Array | None, ...]:
        *arrays, state = ctx.saved_tensors
        spec, needs = ctx.spec, ctx.needs_input_grad[1:]
        real = cotangents[:REAL_FIELDS]
        if all(c is None for c in real):
            return (None,) * (1 + len(arrays))
        if _is_core(real, needs):
            return None, *_core_of_fields(spec, arrays, real, needs)
        given = _given(spec, *arrays)
        shape = state.shape[1:]
        seeds = [
            torch.zeros(shape, dtype=given.compute, device=state.device) if c is None else c
            for c in real
        ]
        seeds = [_by_row(seed, given).contiguous() for seed in seeds]
        return None, _launcher().gradient(given, state, seeds), None, None


def _core_of_fields(
    spec: LossSpec, arrays: Any, cotangents: tuple[Array | None, ...], needs: Any
) -> tuple[Array | None, ...]:
    """Gradients of row statistics by the core, which can be differentiated again."""
    given = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def fields(*whole: Any) -> tuple[Array, ...]:
        xp = namespace(whole[0])
        loss, _ = cross_entropy.forward(xp, spec, *whole)
        found = (loss, *(f.unsqueeze(spec.axis) for f in per_row.forward(xp, spec, *whole[:2])))
        return tuple(found[i] for i in given)

    return _operators.vjp(fields, tuple(arrays), needs, tuple(cotangents[i] for i in given))


class _LogSoftmax(torch.autograd.Function):
    """Log-probabilities, in the dtype of the logits."""

    @staticmethod
    def forward(ctx: Any, spec: LossSpec, logits: Array) -> Array:
        given = _given(spec, logits, None, None)
        ctx.spec = spec
        ctx.save_for_backward(logits)
        logs: Array = _launcher().forward(given, losses=False, logs=True).logs
        return logs

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        (logits,) = ctx.saved_tensors
        spec = ctx.spec
        if _is_core((cotangent,), ()):
            xp, operation = namespace(logits), _calls.OPERATIONS[spec.operation]
            _, residuals = operation.forward(xp, spec, logits)
            seed = cotangent.to(spec.precision.compute)
            return None, *operation.pullback(xp, spec, (logits,), residuals, seed)
        return None, _log_softmax_gradient(spec, logits, cotangent)


def _log_softmax_gradient(spec: LossSpec, logits: Array, cotangent: Array) -> Array:
    """``g - p sum(g)``: minus the gradient of a cross-entropy whose target distribution is g."""
    launcher = _launcher()
    given = launcher.Given(replace(spec, soft=True), logits, cotangent, None)
    state = launcher.forward(given, losses=False).state
    minus = torch.full((), -1.0, dtype=given.compute, device=logits.device)
    gradient: Array = launcher.gradient(given, state, (_by_row(minus, given),))
    return gradient


_losses = _private.plain_apply(_Losses)
_fields = _private.plain_apply(_Fields)
_log_softmax = _private.plain_apply(_LogSoftmax)
