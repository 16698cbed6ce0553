"""One cross-entropy for every array framework: NumPy, PyTorch, JAX, TensorFlow and others.

The functions live in `_losses`, which says where to read on.
"""

from xentx._losses import (
    cross_entropy,
    linear_cross_entropy,
    log_softmax,
    nll_loss,
    value_and_grad,
)
from xentx._registry import BackendInfo, backend_of, backends

__all__ = [
    "BackendInfo",
    "backend_of",
    "backends",
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "nll_loss",
    "value_and_grad",
]
