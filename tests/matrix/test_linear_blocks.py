"""`linear_partials` and `linear_block_gradient` in compiled functions, with a traced `start`."""

import numpy as np
import pytest

import xentx
from xentx.testing import requested_frameworks

HIDDEN = np.random.default_rng(0).normal(size=(5, 3))
HEAD = np.random.default_rng(1).normal(size=(4, 3))
TARGET = np.array([0, 5, 2, -100, 3])


def solve(hidden, head, target, start):
    """Losses and gradients of a block of 9 classes, as if the others had no probability."""
    options = {"classes": 9, "start": start, "chunk": 2}
    state = xentx.linear_partials(hidden, head, target, **options)
    gradients = xentx.linear_block_gradient(state, hidden, head, target, **options)
    return xentx.finish(state), gradients.hidden, gradients.head


def check(found):
    for a, b in zip(found, solve(HIDDEN, HEAD, TARGET, 2), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-12, atol=1e-15)


def test_compiled_by_pytorch():
    if "torch" not in requested_frameworks():
        pytest.skip("PyTorch is not asked for")
    import torch

    function = torch.compile(solve, fullgraph=True, backend="aot_eager")
    check(function(*map(torch.tensor, (HIDDEN, HEAD, TARGET)), 2))


def test_compiled_by_jax():
    if "jax" not in requested_frameworks():
        pytest.skip("JAX is not asked for")
    import jax

    with jax.enable_x64(True):
        check(jax.jit(solve)(HIDDEN, HEAD, TARGET, 2))


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "XLA"])
def test_compiled_by_tensorflow_for_any_number_of_rows(compiled):
    if "tensorflow" not in requested_frameworks():
        pytest.skip("TensorFlow is not asked for")
    import tensorflow as tf

    specs = [tf.TensorSpec(*s) for s in (((None, 3), "float64"), ((4, 3), "float64"))]
    specs += [tf.TensorSpec((None,), "int64"), tf.TensorSpec((), "int64")]
    function = tf.function(solve, input_signature=specs, jit_compile=compiled)
    check(function(HIDDEN, HEAD, TARGET, 2))
