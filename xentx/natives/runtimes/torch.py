"""PyTorch: autograd by ``backward``, compiler torch.compile."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from xentx.natives._runtime import Loss, LossAndGradient

Array = torch.Tensor


class TorchRuntime:
    """torch.Tensor on the default device."""

    def array(self, values: np.ndarray[Any, Any], dtype: str) -> Array:
        # A copy, because torch warns about read-only arrays.
        return torch.tensor(np.array(values, order="C")).to(getattr(torch, dtype))

    def values(self, array: Array) -> np.ndarray[Any, Any]:
        array = array.detach().cpu()
        return array.to(torch.promote_types(array.dtype, torch.float64)).numpy()

    def dtype(self, array: Array) -> str:
        return str(array.dtype).removeprefix("torch.")

    def one_hot(self, indices: Array, classes: int, dtype: str, axis: int) -> Array:
        encoded = torch.nn.functional.one_hot(indices, classes).to(getattr(torch, dtype))
        return encoded.movedim(-1, axis)

    def configured(self, dtype: str) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext()

    def differentiate(self, loss: Loss, *, compiled: bool) -> LossAndGradient:
        if compiled:
            # Static shapes: each case is compiled separately.
            loss = torch.compile(loss, dynamic=False)

        def differentiated(logits: Array, target: Array) -> tuple[Array, Array | None]:
            if not logits.dtype.is_floating_point:
                return loss(logits, target), None
            leaf = logits.detach().requires_grad_()
            value = loss(leaf, target)
            value.sum().backward()
            return value.detach(), leaf.grad

        return differentiated

    def wait(self, array: Array) -> None:
        if array.device.type != "cpu":
            getattr(torch, array.device.type).synchronize()


RUNTIME = TorchRuntime()
