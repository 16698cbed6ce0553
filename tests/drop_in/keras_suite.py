"""Run Keras's own tests of its two cross-entropies with xentx's (``pytest -p keras_suite``)."""

import keras
import pytest
from keras.src.losses import losses

import xentx_keras

CLASSES = {"CategoricalCrossentropyTest", "SparseCategoricalCrossentropyTest"}

# Expected failures and their reasons. It is an error if one of them passes.
AXES = "classes on any axis: an error of Keras's, but on PyTorch, where xentx computes"
DEVIATIONS = {
    "CategoricalCrossentropyTest.test_shape_mismatch": "errors: xentx's words, which name target",
    "SparseCategoricalCrossentropyTest.test_dtype_arg": (
        "indices are numbers of the dtype in Keras: bfloat16 is refused"
    ),
}
if keras.backend.backend() in {"tensorflow", "jax"}:
    DEVIATIONS |= {
        f"SparseCategoricalCrossentropyTest.test_{kind}_segmentation_different_axis": AXES
        for kind in ("binary", "multi_class")
    }
# Tests of a function that xentx does not replace.
OTHERS = {"test_warning_for_invalid_shape"}

for name in xentx_keras.__all__:
    assert hasattr(losses, name), f"Keras has no {name} any more"
    setattr(losses, name, getattr(xentx_keras, name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of these losses, and mark the deviations."""
    kept = [item for item in items if item.cls is not None and item.cls.__name__ in CLASSES]
    assert {item.cls.__name__ for item in kept} == CLASSES
    items[:] = [item for item in kept if item.name not in OTHERS]
    for item in items:
        reason = DEVIATIONS.get(f"{item.cls.__name__}.{item.name}")
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
