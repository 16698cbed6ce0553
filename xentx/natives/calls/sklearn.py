"""scikit-learn's log_loss, a metric: it takes probabilities and has no gradient."""

import numpy as np
from scipy import special
from sklearn import metrics

from xentx._types import Array


def log_loss(
    logits: Array, target: Array, *, sample_weight: Array | None = None, reduction: str = "mean"
) -> Array:
    """``log_loss(t, softmax(x))``."""
    probabilities = special.softmax(logits, axis=-1)
    loss = metrics.log_loss(
        target,
        probabilities,
        labels=np.arange(probabilities.shape[-1]),
        normalize=reduction == "mean",
        sample_weight=sample_weight,
    )
    return np.asarray(loss)
