"""PyTorch's backend: its arrays, and the engines that compute on them."""

from xentx._kernel_engine import engines
from xentx_torch import _kernel, _linear
from xentx_torch._arrays import BACKEND

__all__ = ["BACKEND"]

BACKEND.engines = engines(_kernel)
BACKEND.linear = _linear
BACKEND.cache = _kernel
