"""The functions of `xentx`, bound to the JAX backend.

`_backend` is the backend. `_autodiff` attaches the derivatives of the core. `losses` has
drop-in replacements for losses of Optax.
"""

from xentx import (
    align,
    block_gradient,
    combine,
    finish,
    linear_block_gradient,
    value_and_grad,
)
from xentx._bound import Functions
from xentx_jax._backend import BACKEND
from xentx_jax.losses import (
    safe_softmax_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

_bound = Functions(BACKEND)
binary_cross_entropy = _bound.binary_cross_entropy
cross_entropy = _bound.cross_entropy
kl_divergence = _bound.kl_divergence
linear_cross_entropy = _bound.linear_cross_entropy
linear_kl_divergence = _bound.linear_kl_divergence
linear_partials = _bound.linear_partials
linear_per_row = _bound.linear_per_row
log_softmax = _bound.log_softmax
nll_loss = _bound.nll_loss
partials = _bound.partials
per_row = _bound.per_row

__all__ = [
    "BACKEND",
    "align",
    "binary_cross_entropy",
    "block_gradient",
    "combine",
    "cross_entropy",
    "finish",
    "kl_divergence",
    "linear_block_gradient",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "linear_partials",
    "linear_per_row",
    "log_softmax",
    "nll_loss",
    "partials",
    "per_row",
    "safe_softmax_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "value_and_grad",
]
