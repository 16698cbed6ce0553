"""NumPy's backend: its arrays, and the engines that compute on them."""

from xentx._kernel_engine import engines
from xentx_numpy import _kernel
from xentx_numpy._arrays import BACKEND

__all__ = ["BACKEND"]

BACKEND.engines = engines(_kernel)
