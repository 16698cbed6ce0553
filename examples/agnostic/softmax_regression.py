"""Softmax regression with k-fold evaluation on top of xentx, for arrays of any framework.

The library imports no framework and does not distinguish between them. It uses only Python's
operators on arrays. xentx computes losses, gradients and statistics of rows. A fold is a vector of
sample weights, since indexing is not the same in all frameworks.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

import xentx

Array = Any


class Coefficients(NamedTuple):
    """The fitted parameters: for each class, a row of `head` and an element of `bias`."""

    head: Array
    bias: Array


class Score(NamedTuple):
    """Mean loss, and the fraction of correct predictions."""

    loss: float
    accuracy: float


def fit(
    features: Array,
    labels: Array,
    start: Coefficients,
    *,
    weights: Array | None = None,
    penalty: float = 1e-3,
    rate: float = 1.0,
    momentum: float = 0.9,
    steps: int = 150,
) -> Coefficients:
    """Minimise the mean cross-entropy and `penalty` / 2 times the squares of the head.

    Uses gradients with Nesterov's momentum. The framework and device are those of the arrays in
    `start`.
    """
    loss_and_gradients = xentx.value_and_grad(xentx.linear_cross_entropy)
    now = previous = start
    for _ in range(steps):
        ahead = Coefficients(*(a + momentum * (a - b) for a, b in zip(now, previous, strict=True)))
        _, gradients = loss_and_gradients(
            features, ahead.head, labels, bias=ahead.bias, sample_weight=weights
        )
        previous, now = (
            now,
            Coefficients(
                ahead.head - rate * (gradients.head + penalty * ahead.head),
                ahead.bias - rate * gradients.bias,
            ),
        )
    return now


def score(
    features: Array, labels: Array, fitted: Coefficients, *, weights: Array | None = None
) -> Score:
    """Evaluate rows. Rows with weight 0 are not counted."""
    rows = xentx.linear_per_row(features, fitted.head, labels, bias=fitted.bias)
    counted = None if weights is None else np.asarray(weights)
    loss, correct = (
        float(np.average(np.asarray(x), weights=counted)) for x in (rows.loss, rows.correct)
    )
    return Score(loss, correct)


def cross_validate(
    features: Array,
    labels: Array,
    start: Coefficients,
    folds: Iterable[tuple[Array, Array]],
    **options: Any,
) -> list[Score]:
    """Fit with the first weights of each fold, and evaluate with the second."""
    return [
        score(features, labels, fit(features, labels, start, weights=training, **options),
              weights=held_out)
        for training, held_out in folds
    ]  # fmt: skip


def k_folds(rows: int, k: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of the training and the held-out rows of each of `k` folds, as NumPy arrays."""
    fold = np.random.default_rng(seed).permutation(rows) % k
    return [((fold != i).astype(np.float32), (fold == i).astype(np.float32)) for i in range(k)]
