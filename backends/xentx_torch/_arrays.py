"""PyTorch's implementation of `xentx._backend.Backend`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from xentx._backend import ArrayAPIBackend, Operation
from xentx._core._spec import LossSpec
from xentx_torch import _autodiff, _distributed, _plans, _private

Array = torch.Tensor


_PROXY = torch.fx.Proxy  # stands for a tensor while torch.fx traces
_OWNED = (torch.Tensor, _PROXY)


def _name(dtype_or_layout: object) -> str:
    return str(dtype_or_layout).removeprefix("torch.").lstrip("_")


def _stands_in(array: Array) -> bool:
    return type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


class TorchBackend(ArrayAPIBackend):
    """torch.Tensor and its subclasses."""

    name = "torch"
    symbols = (torch.SymInt,)

    def owns(self, value: object) -> bool:
        return isinstance(value, _OWNED)

    def array(self, value: Any, like: Array) -> Array:
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and not value.is_nested:
                return self._beside(value, like)
            got = f"{'nested' if value.is_nested else _name(value.layout)} tensor"
            hint = "torch.nested.to_padded_tensor" if value.is_nested else "to_dense()"
            msg = f"got a {got}; expected a dense tensor (hint: {hint})"
            raise TypeError(msg)
        if isinstance(value, _PROXY):
            msg = (
                "got a proxy of torch.fx; expected a tensor (hint: torch.fx.wrap the function that "
                "is called)"
            )
            raise TypeError(msg)
        # torch does not support negative strides, and warns about read-only arrays.
        copy = np.array(value)
        if copy.dtype.name == "bfloat16":
            made = torch.from_numpy(copy.view(np.uint16)).view(torch.bfloat16)
        else:
            made = torch.from_numpy(copy)
        return self._beside(made.to(like.device), like)

    def _beside(self, value: Array, like: Any) -> Array:
        """Make a tensor a DTensor if `like` is one."""
        if type(like) in _plans.PLAIN or not _distributed.is_distributed(like):
            return value
        return _distributed.replicated(value, like.device_mesh)

    def namespace(self, array: Array) -> Any:
        return _distributed.namespace(array)

    def dtype_name(self, array: Array) -> str:
        return _name(array.dtype)

    def is_concrete(self, array: Array) -> bool:
        # A recorded call is repeated with other values. Transformations wrap tensors. Tensors of
        # compilers, and others that represent one or several tensors, have a __torch_dispatch__.
        if (
            torch.compiler.is_compiling()
            or _private.is_recording()
            or array.device.type == "meta"
            or _stands_in(array)
            or _private.is_wrapped(array)
        ):
            return False
        # In FakeTensorMode, detach returns a fake tensor.
        return not (_private.len_dispatch_stack() and _stands_in(array.detach()))

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        with _private.without_transforms():  # as print(array) does: numpy() fails under torch.func
            seen = array.float() if array.dtype == torch.bfloat16 else array
            # A __torch_dispatch__ mode sees the operations of force=True, so it is used if needed.
            force = seen.requires_grad or not seen.is_cpu
            values: np.ndarray[Any, Any] = seen.numpy(force=force)
            return values

    def is_compiling(self) -> bool:
        return torch.compiler.is_compiling()

    def has_float64(self, array: Array) -> bool:
        return array.device.type != "mps"

    def device(self, array: Array) -> torch.device:
        return array.device

    def constant(self, array: Array) -> Array:
        return array.detach()

    def is_differentiated(self, array: Array) -> bool:
        recorded = array.requires_grad and torch.is_grad_enabled()
        return recorded or _private.needs_traceable_ops()

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = TorchBackend()
