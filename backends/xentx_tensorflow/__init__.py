"""xentx for TensorFlow: the functions of `xentx`, for its arrays alone and without dispatch.

`_backend` answers for TensorFlow's arrays, `_autodiff` attaches the core's gradients.
"""

from xentx_tensorflow._backend import BACKEND
from xentx_tensorflow._functions import cross_entropy, log_softmax, nll_loss, value_and_grad

__all__ = ["BACKEND", "cross_entropy", "log_softmax", "nll_loss", "value_and_grad"]
