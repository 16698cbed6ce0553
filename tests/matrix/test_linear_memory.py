"""Memory of linear_cross_entropy in NumPy, whose arrays tracemalloc measures."""

import tracemalloc

import numpy as np
import pytest

import xentx
from xentx.testing import requested_frameworks

pytestmark = pytest.mark.skipif(
    "numpy" not in requested_frameworks(), reason="numpy was not requested"
)

ROWS, FEATURES, CLASSES = 4000, 4, 1000
LOGITS_BYTES = {"float32": ROWS * CLASSES * 4, "float64": ROWS * CLASSES * 8}


def added_peak(dtype, chunk):
    """Peak memory in bytes of the loss and its gradients, without the arguments."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, FEATURES)).astype(dtype)
    head = rng.normal(size=(CLASSES, FEATURES)).astype(dtype)
    target = rng.integers(0, CLASSES, ROWS)
    call = xentx.value_and_grad(xentx.linear_cross_entropy)
    call(hidden[:2], head, target[:2], chunk=chunk)
    tracemalloc.start()
    try:
        call(hidden, head, target, chunk=chunk)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", LOGITS_BYTES)
@pytest.mark.parametrize(
    ("chunk", "size"), [("400kB", 4e5), ("0.8 MB", 8e5), ("1.5MiB", 1.5 * 2**20), ("1GB", 1e9)]
)
def test_memory_of_a_chunk(dtype, chunk, size):
    size = min(size, LOGITS_BYTES[dtype])
    peak = added_peak(dtype, chunk)
    # The kernel writes the gradient over the logits. The portable core has temporary arrays.
    is_kernel = xentx.backend_of(np.zeros(1)).engine.startswith("kernel")
    assert 0.9 * size <= peak <= (1 if is_kernel else 8) * size + 6e5


def test_at_least_one_row():
    assert added_peak("float32", "1kB") <= 6e5
