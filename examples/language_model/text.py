"""The text, its batches and the first weights: NumPy's, and so the same in every framework."""

import re
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

CONTEXT = 8  # The tokens that the next one is guessed from,
WIDTH = 32  # the numbers that each of them becomes,
FEATURES = 128  # and those that the last layer sees.
RATE = 2.0  # of plain gradient descent

Batch = tuple[np.ndarray, np.ndarray]


class Weights(NamedTuple):
    """Arrays of any framework."""

    embedding: Any  # (classes, WIDTH)
    inner: Any  # (CONTEXT * WIDTH, FEATURES)
    head: Any  # (classes, FEATURES)
    bias: Any  # (classes,)


def read() -> tuple[int, np.ndarray]:
    """Return the size of the vocabulary, and the text as indices into it.

    It is what Python's `help` has to say, word by word and sign by sign.
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
    """Draw the weights to start from."""
    rng = np.random.default_rng(1)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return np.float32(scale) * rng.standard_normal(shape, np.float32)

    return Weights(
        normal(classes, WIDTH, scale=1.0),
        normal(CONTEXT * WIDTH, FEATURES, scale=(CONTEXT * WIDTH) ** -0.5),
        normal(classes, FEATURES, scale=FEATURES**-0.5),
        np.zeros(classes, np.float32),
    )
