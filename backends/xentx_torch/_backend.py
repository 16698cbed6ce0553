"""PyTorch's backend: its arrays, and the engines that compute on them."""

from xentx._kernel_engine import engines
from xentx_torch import _kernel, _linear
from xentx_torch._arrays import BACKEND
from xentx_torch._triton import _adapter

__all__ = ["BACKEND"]

BACKEND.engines = (*engines(_kernel), *_adapter.engines(_adapter))
BACKEND.linear = _linear
BACKEND.cache = _kernel
