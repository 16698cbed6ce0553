"""Run Optax's own tests of its softmax losses with xentx's (``pytest -p optax_suite``).

Other losses of Optax call these functions by name in their module, and so call those of xentx.
Their tests are not run.
"""

import numpy as np
import pytest
from optax.losses import _classification

import xentx_jax

NAMES = (
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
)
CLASSES = {
    "SoftmaxCrossEntropyTest",
    "SafeSoftmaxCrossEntropyTest",
    "SoftmaxCrossEntropyWithIntegerLabelsTest",
}

for name in NAMES:
    assert hasattr(_classification, name), f"Optax has no {name} any more"
    setattr(_classification, name, getattr(xentx_jax, name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of these losses. It is an error if there are none."""
    kept = [item for item in items if item.cls is not None and item.cls.__name__ in CLASSES]
    assert {item.cls.__name__ for item in kept} == CLASSES
    items[:] = kept


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same numbers each time.

    Optax masks classes at random. In one of 32 draws it masks all of them, which is a ValueError.
    """
    np.random.seed(0)  # noqa: NPY002 -- Optax draws from this generator
