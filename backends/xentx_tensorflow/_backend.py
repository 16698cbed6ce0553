"""TensorFlow's backend: its arrays, and the engines that compute on them."""

from xentx._kernel_engine import engines
from xentx_tensorflow import _kernel, _linear
from xentx_tensorflow._arrays import BACKEND

__all__ = ["BACKEND"]

BACKEND.engines = engines(_kernel)
BACKEND.linear = _linear
