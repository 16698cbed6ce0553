"""xentx for PyTorch: the functions of `xentx`, for its arrays alone and without dispatch.

`_backend` answers for PyTorch's arrays, `_autodiff` attaches the core's gradients. `functional`,
`modules` and `trainer` are for programs that are written for PyTorch's own losses.
"""

from xentx import align, block_gradient, combine, finish, value_and_grad
from xentx._bound import Functions
from xentx_torch import functional
from xentx_torch._backend import BACKEND
from xentx_torch.modules import CrossEntropyLoss, LinearCrossEntropyLoss, LogSoftmax, NLLLoss
from xentx_torch.trainer import compute_loss_func

_bound = Functions(BACKEND)
binary_cross_entropy = _bound.binary_cross_entropy
cross_entropy = _bound.cross_entropy
linear_cross_entropy = _bound.linear_cross_entropy
linear_per_row = _bound.linear_per_row
log_softmax = _bound.log_softmax
nll_loss = _bound.nll_loss
partials = _bound.partials
per_row = _bound.per_row

__all__ = [
    "BACKEND",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LogSoftmax",
    "NLLLoss",
    "align",
    "binary_cross_entropy",
    "block_gradient",
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
