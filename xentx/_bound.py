"""The public functions bound to one backend, for its package to export."""

from xentx import _divergence, _losses, _partials, _row_stats
from xentx._backend import Backend
from xentx._public import bind


class Functions:
    """The functions of `xentx` bound to a backend.

    Parameters
    ----------
    backend
        The backend. The functions accept its arrays only.
    """

    def __init__(self, backend: Backend) -> None:
        self.binary_cross_entropy = bind(_losses.binary_cross_entropy, backend)
        self.cross_entropy = bind(_losses.cross_entropy, backend)
        self.kl_divergence = bind(_divergence.kl_divergence, backend)
        self.linear_cross_entropy = bind(_losses.linear_cross_entropy, backend)
        self.linear_kl_divergence = bind(_divergence.linear_kl_divergence, backend)
        self.linear_partials = bind(_partials.linear_partials, backend)
        self.linear_per_row = bind(_row_stats.linear_per_row, backend)
        self.log_softmax = bind(_losses.log_softmax, backend)
        self.nll_loss = bind(_losses.nll_loss, backend)
        self.partials = bind(_partials.partials, backend)
        self.per_row = bind(_row_stats.per_row, backend)
