"""The public functions, bound to PyTorch."""

import xentx
from xentx._public import bind
from xentx_torch._backend import BACKEND

log_softmax = bind(xentx.log_softmax, BACKEND)
nll_loss = bind(xentx.nll_loss, BACKEND)
cross_entropy = bind(xentx.cross_entropy, BACKEND)
binary_cross_entropy = bind(xentx.binary_cross_entropy, BACKEND)
linear_cross_entropy = bind(xentx.linear_cross_entropy, BACKEND)
value_and_grad = xentx.value_and_grad
per_row = xentx.per_row
linear_per_row = xentx.linear_per_row
partials = xentx.partials
combine = xentx.combine
finish = xentx.finish
