"""Cross-entropy for every array framework: NumPy, PyTorch, JAX, TensorFlow and others.

The losses are in `_losses`. The functions that return results for each row are in `_row_stats`,
those for blocks of the classes in `_partials`.
"""

from xentx._core.partials import Partials
from xentx._divergence import kl_divergence, linear_kl_divergence
from xentx._linear import LinearGradients
from xentx._losses import (
    binary_cross_entropy,
    cross_entropy,
    linear_cross_entropy,
    log_softmax,
    nll_loss,
    value_and_grad,
)
from xentx._partials import (
    align,
    block_gradient,
    combine,
    finish,
    linear_block_gradient,
    linear_partials,
    partials,
)
from xentx._registry import BackendInfo, backend_of, backends, installed_version
from xentx._row_stats import RowStats, linear_per_row, per_row

__version__: str = installed_version("xentx", ("xentx",)) or "unknown"

__all__ = [
    "BackendInfo",
    "LinearGradients",
    "Partials",
    "RowStats",
    "align",
    "backend_of",
    "backends",
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
    "value_and_grad",
]
