"""xentx for PyTorch: the functions of `xentx`, for its arrays alone and without dispatch.

`_backend` answers for PyTorch's arrays, `_autodiff` attaches the core's gradients. `functional`,
`modules` and `trainer` are for programs that are written for PyTorch's own losses.
"""

from xentx_torch import functional
from xentx_torch._backend import BACKEND
from xentx_torch._functions import (
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
from xentx_torch.modules import CrossEntropyLoss, LinearCrossEntropyLoss, LogSoftmax, NLLLoss
from xentx_torch.trainer import compute_loss_func

__all__ = [
    "BACKEND",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LogSoftmax",
    "NLLLoss",
    "binary_cross_entropy",
    "combine",
    "compute_loss_func",
    "cross_entropy",
    "finish",
    "functional",
    "linear_cross_entropy",
    "linear_per_row",
    "log_softmax",
    "nll_loss",
    "partials",
    "per_row",
    "value_and_grad",
]
