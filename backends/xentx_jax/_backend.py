"""JAX's backend: its arrays, and the engines that compute on them."""

from xentx._native import engines
from xentx_jax import _linear, _native
from xentx_jax._arrays import BACKEND

__all__ = ["BACKEND"]

BACKEND.engines = engines(_native)
BACKEND.linear = _linear
