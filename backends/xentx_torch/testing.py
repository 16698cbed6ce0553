"""PyTorch's way into xentx, for `xentx.testing`."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from xentx.testing import Route

Tensor = torch.Tensor


class Torch(Route):
    """Eager PyTorch."""

    name = framework = "torch"

    def array(self, value: Any) -> Tensor:
        value = np.array(value, order="C")
        if value.dtype.name == "bfloat16":
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    def numpy(self, value: Tensor) -> Any:
        value = value.detach()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    def differentiate(
        self, function: Callable[..., Tensor], variables: Sequence[Tensor], cotangent: Any
    ) -> tuple[Tensor, list[Any]]:
        variables = [variable.detach().requires_grad_() for variable in variables]
        value = function(*variables)
        seed = torch.ones_like(value) if cotangent is None else cotangent
        value.backward(seed)
        return value, [variable.grad for variable in variables]


ROUTES = (Torch,)
