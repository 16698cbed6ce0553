"""PyTorch's answers to the questions of `xentx._backend.Backend`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from xentx._backend import LinearAdapter, Memory, NativeAdapter, Operation
from xentx._core._spec import Spec
from xentx._native import KERNEL
from xentx_torch import _autodiff, _linear, _native, _private

Array = torch.Tensor


class TorchBackend:
    """torch.Tensor and its subclasses."""

    name = "torch"
    native: NativeAdapter | None = None if KERNEL is None else _native
    linear: LinearAdapter | None = _linear
    memory: Memory | None = None if KERNEL is None else _native

    def owns(self, value: object) -> bool:
        return isinstance(value, torch.Tensor)

    def array(self, value: Any, like: Array) -> Array:
        if isinstance(value, torch.Tensor):
            return value
        # torch refuses negative strides, and can't promise to leave a read-only array alone.
        copy = np.array(value, order="C")
        if copy.dtype.name == "bfloat16":
            return torch.from_numpy(copy.view(np.uint16)).view(torch.bfloat16).to(like.device)
        return torch.from_numpy(copy).to(like.device)

    def namespace(self, array: Array) -> Any:  # noqa: ARG002
        return _autodiff.NAMESPACE

    def dtype_name(self, array: Array) -> str:
        return str(array.dtype).removeprefix("torch.")

    def is_concrete(self, array: Array) -> bool:
        # What is recorded is repeated with other values. Transformations wrap tensors; those of
        # compilers, and others that stand for one or for several, have a dispatch of their own.
        return not (
            torch.compiler.is_compiling()
            or _private.is_recording()
            or array.device.type == "meta"
            or _private.is_wrapped(array)
            or type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
        )

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        with _private.without_transforms():  # as print(array) does: numpy() fails under torch.func
            seen = array.float() if array.dtype == torch.bfloat16 else array
            # By force in operations that a __torch_dispatch__ mode sees: only where there must be.
            force = seen.requires_grad or not seen.is_cpu
            values: np.ndarray[Any, Any] = seen.numpy(force=force)
            return values

    def is_compiling(self) -> bool:
        return torch.compiler.is_compiling()

    def has_float64(self, array: Array) -> bool:
        return array.device.type != "mps"

    def device(self, array: Array) -> torch.device:
        return array.device

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attach(self, operation: Operation, spec: Spec, arrays: tuple[Array | None, ...]) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = TorchBackend()
