"""The bits of a row do not depend on the batch, in every framework."""

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle

ROWS, CLASSES = 33, 1001
BATCHES = {
    "alone": slice(5, 6),
    "some": slice(3, 20),
    "reversed": slice(None, None, -1),
}


def rows(logits, target):
    """Combine log-probabilities and losses in one array."""
    log_prob = xentx.per_row(logits, target).log_prob
    return log_prob + 2 * xentx.cross_entropy(logits, target, reduction="none")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_of_a_row(route, dtype, batch):
    if not xentx.backend_of(route.array(np.zeros(3, np.float32))).engine.startswith("kernel"):
        pytest.skip("the kernel does not compute here")
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(ROWS, CLASSES))).astype(oracle.DTYPES[dtype])
    target, chosen = rng.integers(0, CLASSES, ROWS), BATCHES[batch]
    part = np.ascontiguousarray(logits[chosen]), np.ascontiguousarray(target[chosen])
    whole = route.value(rows, logits, target)[chosen]
    np.testing.assert_array_equal(route.value(rows, *part), whole)
    _, slope = route.pull(xentx.cross_entropy, logits, target, reduction="sum")
    _, found = route.pull(xentx.cross_entropy, *part, reduction="sum")
    np.testing.assert_array_equal(found, slope[chosen])
