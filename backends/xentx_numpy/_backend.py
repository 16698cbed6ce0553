"""NumPy's backend: its arrays, and the engines that compute on them."""

from xentx._native import KERNEL
from xentx_numpy import _native
from xentx_numpy._arrays import BACKEND

__all__ = ["BACKEND"]

BACKEND.native = None if KERNEL is None else _native
