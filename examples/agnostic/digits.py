"""Classify handwritten digits with the library, in all installed frameworks.

``python examples/agnostic/digits.py`` prints the loss and the accuracy for each of them.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from softmax_regression import Coefficients, Score, cross_validate, fit, k_folds


class Report(NamedTuple):
    """The coefficients from all rows, as NumPy arrays, and the score of each fold."""

    coefficients: Coefficients
    scores: list[Score]


def _torch() -> Callable[..., Any]:
    import torch

    return torch.asarray


def _jax() -> Callable[..., Any]:
    import jax.numpy as jnp

    return jnp.asarray


def _tensorflow() -> Callable[..., Any]:
    import tensorflow as tf

    return tf.constant


# Only the conversion from NumPy arrays depends on the framework.
FRAMEWORKS: dict[str, Callable[[], Callable[..., Any]]] = {
    "numpy": lambda: np.asarray,
    "torch": _torch,
    "jax": _jax,
    "tensorflow": _tensorflow,
}


def run(framework: str, k: int = 5) -> Report:
    """Fit and evaluate the digits in a framework."""
    array = FRAMEWORKS[framework]()
    images, classes = load_digits(return_X_y=True)
    features, labels = array(images.astype(np.float32) / 16), array(classes.astype(np.int32))
    start = Coefficients(array(np.zeros((10, 64), np.float32)), array(np.zeros(10, np.float32)))
    folds = [tuple(map(array, fold)) for fold in k_folds(len(images), k)]
    fitted = Coefficients(*map(np.asarray, fit(features, labels, start)))
    return Report(fitted, cross_validate(features, labels, start, folds))


if __name__ == "__main__":
    for framework in FRAMEWORKS:
        if importlib.util.find_spec(framework):
            scores = run(framework).scores
            loss, accuracy = np.mean(scores, axis=0)
            print(f"{framework:10}  held out: loss {loss:.4f}, accuracy {accuracy:.2%}")
