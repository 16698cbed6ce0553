"""Text, batches and initial weights as NumPy arrays, the same for every framework."""

import re
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

CONTEXT = 8  # number of tokens from which the next one is predicted
WIDTH = 32  # size of the embedding of a token
FEATURES = 128  # size of the hidden layer
RATE = 2.0  # learning rate of gradient descent

Batch = tuple[np.ndarray, np.ndarray]


class Weights(NamedTuple):
    """The weights of the model, as arrays of any framework."""

    embedding: Any  # (classes, WIDTH)
    inner: Any  # (CONTEXT * WIDTH, FEATURES)
    head: Any  # (classes, FEATURES)
    bias: Any  # (classes,)


def read() -> tuple[int, np.ndarray]:
    """Return the size of the vocabulary, and the text as indices into it.

    The text is that of Python's `help`. A token is a word or a symbol.
    """
    tokens = re.findall(r"\w+|[^\w\s]", " ".join(topics.values()))
    vocabulary, text = np.unique(tokens, return_inverse=True)
    return len(vocabulary), text


def batches(text: np.ndarray, steps: int, rows: int) -> Iterator[Batch]:
    """Draw contexts, ``(rows, CONTEXT)``, and the token that follows each."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        ends = rng.integers(CONTEXT, len(text), rows)
        yield text[ends[:, None] + np.arange(-CONTEXT, 0)], text[ends]


def weights(classes: int) -> Weights:
    """Draw the initial weights."""
    rng = np.random.default_rng(1)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return np.float32(scale) * rng.standard_normal(shape, np.float32)

    return Weights(
        normal(classes, WIDTH, scale=1.0),
        normal(CONTEXT * WIDTH, FEATURES, scale=(CONTEXT * WIDTH) ** -0.5),
        normal(classes, FEATURES, scale=FEATURES**-0.5),
        np.zeros(classes, np.float32),
    )
