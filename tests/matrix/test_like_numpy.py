"""Every route gives the same results as NumPy, with a difference of a few units."""

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle
from xentx.testing import routes
from xentx.testing._problems import OPTIONS, RNG_SEED, draw_problem

# Both results have an error of at most 4 and 8 units, and mostly much less.
LOSS_ULPS, GRADIENT_ULPS = 4, 8
(NUMPY,) = (made() for made in routes("numpy") if made.name == "numpy")


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("gap", [0, 25], ids=["normal", "confident"])
def test_in_ulps(route, classes, gap):
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (64, classes)).astype(np.float32)
    target = logits.argmax(-1).astype(np.int32) if gap else rng.integers(0, classes, 64, np.int32)
    logits[np.arange(64), target] += np.float32(gap)
    (value, gradient), (expected, slope) = (
        each.pull(xentx.cross_entropy, logits, target, reduction="none") for each in (route, NUMPY)
    )
    normal = np.abs(slope) >= oracle.tiny(np.float32)
    assert oracle.ulps(value, expected).max() <= LOSS_ULPS
    assert oracle.ulps(gradient, slope)[normal].max() <= GRADIENT_ULPS


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "weighted_mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(route, options, soft, reduction):
    rng = np.random.default_rng(RNG_SEED)
    logits, target, options, cotangent = draw_problem(
        rng, (6, 5), 1, np.float32, soft=soft, reduction=reduction, options=options
    )
    truth = oracle.cross_entropy(logits, target, **options, cotangent=cotangent)
    (value, gradient), (expected, slope) = (
        each.pull(xentx.cross_entropy, logits, target, cotangent=cotangent, **options)
        for each in (route, NUMPY)
    )
    oracle.assert_within(value, expected, truth.value_scale, 4)
    oracle.assert_within(gradient, slope, truth.gradient_scale, 8)
