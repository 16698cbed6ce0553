"""Values and gradients against true values, for every option, shape, axis and dtype."""

import ml_dtypes
import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle
from xentx.testing._checks import check_loss
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem

# Units of the dtype's precision, relative to the size of the terms that are summed. The functions
# have an error of at most 4 units of float32, and a sum of several terms has a few more.
VALUE_UNITS = 6
GRADIENT_UNITS = 12


def check(route, logits, target, options, cotangent):
    """Compare the value of a problem and its gradient for a cotangent with the true values."""
    truth = oracle.cross_entropy(logits, target, **options, cotangent=cotangent)
    units, arrays = (VALUE_UNITS, GRADIENT_UNITS), (logits, target)
    check_loss(route, xentx.cross_entropy, arrays, options, cotangent, truth, units)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(route, options, soft, reduction):
    rng = np.random.default_rng(RNG_SEED)
    problem = draw_problem(
        rng, (6, 5), 1, np.float32, soft=soft, reduction=reduction, options=options
    )
    check(route, *problem)


@pytest.mark.parametrize("dtype", oracle.DTYPES.values(), ids=oracle.DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_dtypes(route, dtype, reduction):
    if dtype.name not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(RNG_SEED)
    options = {"weight": True, "label_smoothing": 0.1}
    for soft in (False, True):
        check(
            route,
            *draw_problem(rng, (20, 7), -1, dtype, soft=soft, reduction=reduction, options=options),
        )


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
def test_axes(route, axis):
    rng = np.random.default_rng(RNG_SEED)
    for soft in (False, True):
        check(
            route,
            *draw_problem(
                rng,
                (2, 3, 4, 5),
                axis,
                np.float32,
                soft=soft,
                reduction="mean",
                options={"weight": True, "sample_weight": True},
            ),
        )


def test_one_row(route):
    rng = np.random.default_rng(RNG_SEED)
    for soft in (False, True):
        check(
            route,
            *draw_problem(rng, (5,), 0, np.float32, soft=soft, reduction="none", options={}),
        )


def test_log_softmax_and_its_pullback(route):
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (50, 7)).astype(np.float32)
    logits[::5, 2] += 30
    cotangent = rng.normal(size=logits.shape).astype(np.float32)
    losses, p, complement = oracle.log_softmax(logits.astype(np.longdouble))
    value, gradient = route.pull(xentx.log_softmax, logits, cotangent=cotangent)
    assert oracle.ulps(value, -losses).max() <= 4
    total = cotangent.astype(np.longdouble).sum(-1, keepdims=True)
    others = total - cotangent
    truth = np.where(p > 0.5, cotangent * complement - p * others, cotangent - p * total)
    size = np.abs(cotangent).sum(-1, keepdims=True)
    scale = np.where(
        p > 0.5, np.abs(cotangent) * complement + p * size, np.abs(cotangent) + p * size
    )
    oracle.assert_within(gradient, truth, scale, GRADIENT_UNITS)


def test_log_softmax_one_hot_cotangent(route):
    """The gradient of log_softmax and nll_loss for a confident row.

    Other formulas lose all digits.
    """
    logits = np.array([[20.0, 0.0]], np.float32)
    cotangent = np.array([[-1.0, 0.0]], np.float32)
    _, gradient = route.pull(xentx.log_softmax, logits, cotangent=cotangent)
    np.testing.assert_allclose(gradient, [[-2.06115369e-09, 2.06115369e-09]], rtol=3e-7)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(route, soft, reduction):
    rng = np.random.default_rng(RNG_SEED)
    logits, target, options, cotangent = draw_problem(
        rng, (6, 5), 1, np.float32, soft=soft, reduction=reduction, options={"weight": True}
    )
    log_probs = -oracle.log_softmax(logits.astype(np.longdouble))[0].astype(np.float32)
    truth = oracle.cross_entropy(logits, target, **options, cotangent=cotangent)
    value, gradient = route.pull(xentx.nll_loss, log_probs, target, cotangent=cotangent, **options)
    oracle.assert_within(value, truth.value, truth.value_scale, VALUE_UNITS)
    y = target if soft else oracle.one_hot(target, 5)
    divisors = {
        "none": 1,
        "sum": 1,
        "mean": 6 if soft else options["weight"][target].sum(),
        "weighted_mean": (y * options["weight"]).sum(),
    }
    seed = cotangent[:, None] if reduction == "none" else cotangent
    expected = -seed * options["weight"] * y / divisors[reduction]
    np.testing.assert_allclose(gradient, expected.astype(np.float64), rtol=1e-6)


def test_bfloat16_is_ml_dtypes(route):
    """The result has the dtype bfloat16."""
    if "bfloat16" not in route.dtypes:
        pytest.skip(f"{route} has no bfloat16")
    logits = np.array([[1.0, 2.0, 0.5]], ml_dtypes.bfloat16)
    assert route.value(xentx.cross_entropy, logits, np.array([1])).dtype == ml_dtypes.bfloat16
