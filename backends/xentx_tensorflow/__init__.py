"""xentx for TensorFlow: the functions of `xentx`, for its arrays alone and without dispatch.

`_backend` answers for TensorFlow's arrays, `_autodiff` attaches the core's gradients.
"""

from xentx_tensorflow._backend import BACKEND
from xentx_tensorflow._functions import (
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
    "value_and_grad",
]
