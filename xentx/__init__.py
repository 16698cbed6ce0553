"""Cross-entropy for every array framework: NumPy, PyTorch, JAX, TensorFlow and others.

The losses are in `_losses`. The functions that return results for each row are in `_row_stats`.
"""

from xentx._core.partials import Partials
from xentx._divergence import kl_divergence
from xentx._linear import LinearGradients
from xentx._losses import (
    binary_cross_entropy,
    cross_entropy,
    linear_cross_entropy,
    log_softmax,
    nll_loss,
    value_and_grad,
)
from xentx._registry import BackendInfo, backend_of, backends, installed_version
from xentx._row_stats import (
    RowStats,
    combine,
    finish,
    linear_per_row,
    partials,
    per_row,
)

__version__: str = installed_version("xentx", ("xentx",)) or "unknown"

__all__ = [
    "BackendInfo",
    "LinearGradients",
    "Partials",
    "RowStats",
    "backend_of",
    "backends",
    "binary_cross_entropy",
    "combine",
    "cross_entropy",
    "finish",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_per_row",
    "log_softmax",
    "nll_loss",
    "partials",
    "per_row",
    "value_and_grad",
]
