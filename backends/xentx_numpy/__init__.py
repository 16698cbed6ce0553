"""xentx for NumPy: the functions of `xentx`, for its arrays alone and without dispatch.

`_backend` answers for NumPy's arrays, `_autodiff` attaches the core's gradients, `_kernel` hands
arrays to the CPU kernel.
"""

from xentx_numpy._backend import BACKEND
from xentx_numpy._functions import (
    binary_cross_entropy,
    combine,
    cross_entropy,
    finish,
    linear_cross_entropy,
    linear_per_row,
    log_softmax,
    nll_loss,
    partials,
    per_row,
    value_and_grad,
)
from xentx_numpy._memory import reuse_memory

__all__ = [
    "BACKEND",
    "binary_cross_entropy",
    "combine",
    "cross_entropy",
    "finish",
    "linear_cross_entropy",
    "linear_per_row",
    "log_softmax",
    "nll_loss",
    "partials",
    "per_row",
    "reuse_memory",
    "value_and_grad",
]
