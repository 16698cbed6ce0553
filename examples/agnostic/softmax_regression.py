"""A small library on xentx: softmax regression and k-fold evaluation, of any framework's arrays.

It imports no framework and asks for none. What it needs of arrays are Python's operators; losses,
gradients and each row's statistics are xentx's. A fold is a vector of sample weights, so that
nothing is indexed, which not all frameworks can.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

import xentx

Array = Any


class Coefficients(NamedTuple):
    """What is fitted: a row of `head`, and a number of `bias`, for each class."""

    head: Array
    bias: Array


class Score(NamedTuple):
    """How well rows are predicted: mean loss, and share of right answers."""

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

    By gradients with Nesterov's momentum, from `start`, whose arrays say where to compute.
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
    """Evaluate rows, those of weight 0 left out."""
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
    """Fit on each fold's first weights, and score by its second."""
    return [
        score(features, labels, fit(features, labels, start, weights=training, **options),
              weights=held_out)
        for training, held_out in folds
    ]  # fmt: skip


def k_folds(rows: int, k: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of the rows to train on and to hold out, in each of `k` folds of NumPy's."""
    fold = np.random.default_rng(seed).permutation(rows) % k
    return [((fold != i).astype(np.float32), (fold == i).astype(np.float32)) for i in range(k)]
