"""Framework against framework: the same numbers, to a few units, and no arrays of two in a call."""

import itertools

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks, routes
from xentx.testing._problems import OPTIONS, RNG_SEED, draw_problem

# Each side is within 4 and 8 units of the truth, and mostly far nearer than that.
LOSS_ULPS, GRADIENT_ULPS = 4, 8


@pytest.fixture(scope="module")
def everywhere():
    return [route() for route in routes(*requested_frameworks())]


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("gap", [0, 25], ids=["normal", "confident"])
def test_in_ulps(everywhere, classes, gap):
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (64, classes)).astype(np.float32)
    target = logits.argmax(-1).astype(np.int32) if gap else rng.integers(0, classes, 64, np.int32)
    logits[np.arange(64), target] += np.float32(gap)
    results = {
        route.name: route.pull(xentx.cross_entropy, logits, target, reduction="none")
        for route in everywhere
    }
    for (one, a), (other, b) in itertools.combinations(results.items(), 2):
        pair = f"{one} and {other}"
        normal = np.abs(b[1]) >= oracle.tiny(np.float32)
        assert oracle.ulps(a[0], b[0].astype(np.longdouble)).max() <= LOSS_ULPS, pair
        assert oracle.ulps(a[1], b[1].astype(np.longdouble))[normal].max() <= GRADIENT_ULPS, pair


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "weighted_mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(everywhere, options, soft, reduction):
    rng = np.random.default_rng(RNG_SEED)
    logits, target, options, cotangent = draw_problem(
        rng, (6, 5), 1, np.float32, soft=soft, reduction=reduction, options=options
    )
    truth = oracle.cross_entropy(logits, target, **options, cotangent=cotangent)
    results = {
        route.name: route.pull(xentx.cross_entropy, logits, target, cotangent=cotangent, **options)
        for route in everywhere
    }
    for a, b in itertools.combinations(results.values(), 2):
        oracle.assert_within(a[0], b[0].astype(np.longdouble), truth.value_scale, 4)
        oracle.assert_within(a[1], b[1].astype(np.longdouble), truth.gradient_scale, 8)


def test_mixed_frameworks(everywhere):
    """An array of one framework beside the logits of another, for every pair that is here."""
    eager = [route for route in everywhere if not route.traced and route.name != "strict"]
    for of_logits, of_target in itertools.product(eager, repeat=2):
        logits = of_logits.array(np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32))
        target = of_target.array(np.array([1, 2], np.int32))
        if of_target.name in (of_logits.name, "numpy"):
            assert 0.39 < float(xentx.cross_entropy(logits, target)) < 0.4
            continue
        text = (
            f"target: got a {of_target.name} array where logits is a {of_logits.name} array; "
            "expected both of one framework, or target of NumPy"
        )
        with pytest.raises(TypeError, match=f"^{text}$"):
            xentx.cross_entropy(logits, target)
