"""All private names of PyTorch that xentx uses.

PyTorch has no public functions for most of what the adapter needs: whether a transformation or a
tracer is active, and whether forward mode is on. Each name is looked up once. If PyTorch does not
have it, a fallback with public functions is used. With the fallbacks, values and derivatives are
the same. Calls are slower, because a tracer is assumed. Compiled graphs contain the core's
expressions instead of the kernel's operators. Class indices are not checked under torch.func.

One more name is the attribute that `torch.compiler.assume_constant_result` sets on a function.
`called_by_dynamo` sets it without importing Dynamo. `xentx._registry`, which does not import
PyTorch, sets it as well.
"""

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

Array = torch.Tensor

# Names that this PyTorch lacks. Their fallbacks are used.
MISSING: list[str] = []


def _find(name: str, fallback: Any) -> Any:
    """Look up a dotted name in torch."""
    try:
        return operator.attrgetter(name)(torch)
    except AttributeError:
        MISSING.append(name)
        return fallback


def called_by_dynamo(function: Callable[[], None]) -> Callable[[], None]:
    """Let Dynamo call a function while it traces, and not trace it."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _somebody() -> int:
    return 1


def _not_dynamo() -> bool:
    return not torch.compiler.is_dynamo_compiling()


def _some_hooks(_: bool) -> object:  # noqa: FBT001
    return True


def _is_wrapped(array: Array) -> bool:
    """Whether the memory of a tensor cannot be read, also inside torch.func."""
    return not _has_storage(array.detach())


def _has_storage(array: Array) -> bool:
    try:
        array.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _is_zero(array: Array) -> bool:
    """Whether a tensor without memory represents zeros. Otherwise its storage was freed."""
    return array.untyped_storage().nbytes() != 0


# Whether torch.func is active, the number of active __torch_dispatch__ modes, and whether autograd
# packs saved tensors. The fallbacks return true, so that the kernel is called by an operator, and
# gradients are computed in the backward.
are_transforms_active: Callable[[], bool] = _find(
    "_C._are_functorch_transforms_active", _not_dynamo
)
len_dispatch_stack: Callable[[], int] = _find("_C._len_torch_dispatch_stack", _somebody)
saved_tensors_hooks: Callable[[bool], object] = _find(
    "_C._autograd._top_saved_tensors_default_hooks", _some_hooks
)
# Whether a tensor is a wrapper of torch.func. The fallback is also true for a tensor that
# torch.func would wrap. Its class indices are not checked, and an invalid one makes its row NaN.
is_wrapped: Callable[[Array], bool] = _find(
    "_C._functorch.is_functorch_wrapped_tensor", _is_wrapped
)
# A context without torch.func. In it, the memory of tensors that are not wrapped can be read.
without_transforms: Callable[[], AbstractContextManager[Any]] = _find(
    "_C._DisableFuncTorch", nullcontext
)
# Whether a tensor has memory. Those of torch.autograd.grad(..., is_grads_batched=True) have none.
has_storage: Callable[[Array], bool] = _find("_C._has_storage", _has_storage)
# Whether a tensor represents zeros without memory.
is_zero: Callable[[Array], bool] = _find("Tensor._is_zerotensor", _is_zero)
# Tensors that represent others in a compiler. They also have a __torch_dispatch__.
STAND_INS: tuple[type, ...] = tuple(
    stand_in
    for stand_in in (
        _find("_subclasses.FakeTensor", None),
        _find("_subclasses.functional_tensor.FunctionalTensor", None),
    )
    if stand_in is not None
)


class _Levels:
    """The level of torch.autograd.forward_ad. Outside of a level, make_dual raises an error."""

    @property
    def _current_level(self) -> int:
        one = torch.ones(())
        try:
            forward_ad.make_dual(one, one)
        except RuntimeError:
            return -1
        return 0


_current_level = _find("autograd.forward_ad._current_level", None)
_levels: Any = _Levels() if _current_level is None else forward_ad
_is_compiling = torch.compiler.is_compiling
is_tracing: Callable[[], bool] = _find("_C._is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]


def in_forward_mode() -> bool:
    """Whether forward mode is on: dual numbers, or a jvp of torch.func."""
    return bool(_levels._current_level >= 0)


def is_recording() -> bool:
    """Whether torch.jit.trace or make_fx records operations, to repeat them with other values."""
    return is_tracing() or get_proxy_mode() is not None


def needs_traceable_ops() -> bool:
    """Whether a compiler, a tracer, torch.func or forward mode needs operators."""
    return bool(
        _is_compiling()
        or are_transforms_active()
        or _levels._current_level >= 0
        or len_dispatch_stack() > 0
        or is_tracing()
    )


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return a Function's ``apply`` without the code for torch.func, if PyTorch has it."""
    apply: Callable[..., Any] = getattr(
        super(torch.autograd.Function, function), "apply", function.apply
    )
    return apply
