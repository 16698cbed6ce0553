"""Kinds of logits on which accuracy is measured.

Each regime generates its logits from a seed, in float64. They are rounded to the measured dtype
first, so that the rounding of the input does not count as an error of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from xentx.compare._floats import FORMATS
from xentx.compare.case import Case
from xentx.natives.vocabulary import LossName

Array = np.ndarray[Any, Any]
Generate = Callable[[np.random.Generator], tuple[Array, Array]]

WORKED_EXAMPLE = ((1.0, 2.0, 0.5), (0.1, 0.5, 2.0)), (1, 2)
"""Logits and targets of the example that the documentation works through."""

_MANY = 1797  # as many as in "digits", because compilers compile again for each shape

GAPS = tuple(range(1, 41))
"""How far the target's logit is above the other one's, in the regime "gap"."""


@dataclass(frozen=True, slots=True)
class Regime:
    """A kind of logits.

    Parameters
    ----------
    name
        Its name in `xentx compare --regime`.
    description
        What the logits are.
    generate
        Generates logits (rows by classes) and class indices from a random generator.
    needs
        The import name of a library that it needs, or None.
    """

    name: str
    description: str
    generate: Generate
    needs: str | None = None

    def case(self, dtype: str, seed: int, loss: LossName = "cross_entropy") -> Case:
        """Generate the logits and targets in a dtype.

        For a binary loss, each logit is a row, and its target is that of its class.
        """
        logits, target = self.generate(np.random.default_rng(seed))
        if loss == "binary_cross_entropy":
            if target.dtype.kind != "f":
                target = (np.arange(logits.shape[-1]) == target[..., None]).astype(np.float64)
            logits, target = logits.ravel(), target.ravel()
        rounded = FORMATS[dtype].round(logits).astype(np.float64)
        soft = target.dtype.kind == "f"
        return Case(
            logits=rounded,
            dtype=dtype,
            target=FORMATS[dtype].round(target).astype(np.float64) if soft else target,
            target_dtype=dtype if soft else "int64",
            kind="probabilities" if soft else "indices",
            loss=loss,
            configure=True,
        )


def _worked_example(_: np.random.Generator) -> tuple[Array, Array]:
    logits, target = WORKED_EXAMPLE
    return np.asarray(logits), np.asarray(target)


@cache
def _fitted() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 -- only this regime needs it
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    images, labels = load_digits(return_X_y=True)
    model = LogisticRegression(C=1.0, solver="lbfgs", max_iter=1000)
    logits = model.fit(images / 16.0, labels).decision_function(images / 16.0)
    return np.asarray(logits, np.float32).astype(np.float64), np.asarray(labels, np.int64)


def _digits(_: np.random.Generator) -> tuple[Array, Array]:
    return _fitted()


def _gap(_: np.random.Generator) -> tuple[Array, Array]:
    gaps = np.asarray(GAPS, np.float64)
    return np.stack([gaps, np.zeros_like(gaps)], axis=1), np.zeros(len(GAPS), np.int64)


def _normal(rows: int, classes: int, *, scale: float = 3.0, center: float = 0.0) -> Generate:
    def generate(rng: np.random.Generator) -> tuple[Array, Array]:
        logits = center + scale * rng.standard_normal((rows, classes))
        return logits, rng.integers(0, classes, rows)

    return generate


def _confident(rows: int, classes: int) -> Generate:
    def generate(rng: np.random.Generator) -> tuple[Array, Array]:
        logits = rng.standard_normal((rows, classes))
        target = rng.integers(0, classes, rows)
        gap = rng.uniform(15.0, 60.0, rows)
        logits[np.arange(rows), target] = logits.max(axis=1) + gap
        return logits, target

    return generate


_TABLE = (
    Regime("worked-example", "two rows of three classes", _worked_example),
    Regime(
        "digits",
        "decision function of a logistic regression on scikit-learn's 1,797 handwritten digits",
        _digits,
        needs="sklearn",
    ),
    Regime("gap", "[gap, 0] with target 0, for gaps from 1 to 40", _gap),
    Regime("normal-10", "normal(0, 3), 10 classes", _normal(_MANY, 10)),
    Regime("normal-1000", "normal(0, 3), 1,000 classes", _normal(200, 1000)),
    Regime("normal-50257", "normal(0, 3), 50,257 classes", _normal(16, 50257)),
    Regime("normal-262144", "normal(0, 3), 262,144 classes", _normal(4, 262144)),
    Regime(
        "confident-10",
        "normal(0, 1), 10 classes, the target 15 to 60 above the next",
        _confident(_MANY, 10),
    ),
    Regime(
        "confident-1000",
        "normal(0, 1), 1,000 classes, the target 15 to 60 above the next",
        _confident(200, 1000),
    ),
    Regime(
        "near-tied-10", "normal(1, 0.0001), 10 classes", _normal(_MANY, 10, scale=1e-4, center=1.0)
    ),
    Regime(
        "near-tied-1000",
        "normal(1, 0.0001), 1,000 classes",
        _normal(200, 1000, scale=1e-4, center=1.0),
    ),
    Regime("offset-10", "normal(10,000, 3), 10 classes", _normal(_MANY, 10, center=1e4)),
    Regime("offset-1000", "normal(10,000, 3), 1,000 classes", _normal(200, 1000, center=1e4)),
    Regime("scaled-10", "normal(0, 3,000), 10 classes", _normal(_MANY, 10, scale=3e3)),
    Regime("scaled-1000", "normal(0, 3,000), 1,000 classes", _normal(200, 1000, scale=3e3)),
)

REGIMES = {regime.name: regime for regime in _TABLE}
"""Every regime by its name."""

DEFAULT_REGIMES = ("worked-example", "digits")
"""The default of `xentx compare`."""
