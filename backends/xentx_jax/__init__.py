"""xentx for JAX: the functions of `xentx`, for its arrays alone and without dispatch.

`_backend` answers for JAX's arrays, `_autodiff` attaches the core's gradients.
"""

from xentx_jax._backend import BACKEND
from xentx_jax._functions import cross_entropy, log_softmax, nll_loss, value_and_grad

__all__ = ["BACKEND", "cross_entropy", "log_softmax", "nll_loss", "value_and_grad"]
