"""PyTorch's backend: its arrays, and the engines that compute on them."""

from xentx._native import engines
from xentx_torch import _linear, _native
from xentx_torch._arrays import BACKEND

__all__ = ["BACKEND"]

BACKEND.engines = engines(_native)
BACKEND.linear = _linear
BACKEND.cache = _native
