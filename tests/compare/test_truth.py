"""True values against mpmath with 700 digits, and against values computed by hand."""

import mpmath
import numpy as np
import pytest

from xentx.compare import truth
from xentx.compare.truth import PRECISION

DIGITS = 700
TOLERANCE = 2.0 ** (11 - PRECISION)
"""Of longdouble: a few roundings, and those of exp at arguments of some hundreds."""


def loss_and_gradient(logits, target, *, reduction="none", **options):
    found = truth.cross_entropy(logits, target, reduction=reduction, **options)
    return found.value, found.gradient


def binary_loss_and_gradient(logits, target, *, reduction="none", **options):
    found = truth.binary_cross_entropy(logits, target, reduction=reduction, **options)
    return found.value, found.gradient


def exact(x, q):
    """Loss and gradient of one row with target distribution q, in mpmath."""
    with mpmath.workdps(DIGITS):
        x = [mpmath.mpf(float(v)) for v in x]
        q = [mpmath.mpf(float(v)) + mpmath.mpf(float(v - float(v))) for v in q]
        total = mpmath.fsum(mpmath.exp(v) for v in x)
        lse = mpmath.log(total)
        loss = mpmath.fsum(w * (lse - v) for w, v in zip(q, x, strict=True))
        amount = mpmath.fsum(q)
        gradient = [amount * mpmath.exp(v) / total - w for w, v in zip(q, x, strict=True)]
        return loss, gradient


def wide(values):
    """Convert mpmath numbers to longdouble, as a sum of two doubles."""
    high = np.asarray([float(v) for v in values])
    low = np.asarray([float(v - mpmath.mpf(h)) for v, h in zip(values, high, strict=True)])
    return high.astype(np.longdouble) + low


def check(logits, target, q, **options):
    loss, gradient = loss_and_gradient(logits, target, **options)
    for row in range(len(logits)):
        with mpmath.workdps(DIGITS):
            true_loss, true_gradient = exact(logits[row], q[row])
            wanted = wide([true_loss, *true_gradient])
        np.testing.assert_allclose(loss[row], wanted[0], rtol=TOLERANCE)
        np.testing.assert_allclose(gradient[row], wanted[1:], rtol=TOLERANCE, atol=1e-307)


@pytest.mark.parametrize("scale", [1e-4, 3.0, 300.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_integer_targets(scale, offset):
    rng = np.random.default_rng(0)
    logits = offset + scale * rng.standard_normal((20, 7))
    target = rng.integers(0, 7, 20)
    check(logits, target, np.eye(7)[target])


@pytest.mark.parametrize("gap", [15.0, 40.0, 700.0])
def test_confident_rows(gap):
    logits = np.asarray([[gap, 0.0, -1.0], [0.0, gap, 1.0]])
    target = np.asarray([0, 1])
    check(logits, target, np.eye(3)[target])


def test_weights_smoothing_and_soft_targets():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((10, 5))
    weight = rng.uniform(0.5, 2.0, 5).astype(np.longdouble)
    target = rng.integers(0, 5, 10)
    share = np.longdouble(0.25) / 5
    hard = (1 - 0.25) * np.eye(5)[target] * weight + share * weight
    check(logits, target, hard, weight=weight, label_smoothing=0.25)
    soft = rng.dirichlet(np.ones(5), 10)
    check(logits, soft, soft * weight, weight=weight)


def test_reductions_and_ignored_rows():
    logits = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0], [np.nan, 0.0, 1.0]])
    target = np.asarray([1, 2, -100])
    weight = np.asarray([1.0, 2.0, 3.0])
    rows, gradient = loss_and_gradient(logits, target, weight=weight)
    assert rows[2] == 0.0
    assert not gradient[2].any()
    mean, mean_gradient = loss_and_gradient(logits, target, weight=weight, reduction="mean")
    np.testing.assert_allclose(mean, rows.sum() / 5.0, rtol=1e-18)
    np.testing.assert_allclose(mean_gradient, gradient / 5.0, rtol=1e-18)
    empty, zero = loss_and_gradient(logits, np.full(3, -100), reduction="mean")
    assert np.isnan(empty)
    assert not zero.any()


def test_infinities():
    inf = np.inf
    logits = np.asarray([[1.0, 0.0, -inf], [1.0, 0.0, -inf], [-inf] * 3, [0.0, inf, 0.0]])
    loss, gradient = loss_and_gradient(logits, np.asarray([0, 2, 0, 1]))
    np.testing.assert_allclose(loss[0], np.log1p(np.exp(np.longdouble(-1.0))), rtol=TOLERANCE)
    assert loss[1] == inf
    assert gradient[1, 2] == -1.0
    assert np.isnan(loss[2:]).all()
    assert np.isnan(gradient[2:]).all()


def test_a_target_out_of_range_makes_its_row_nan():
    loss, gradient = loss_and_gradient(np.zeros((3, 2)), np.asarray([0, 2, -1]))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True])
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=1), [False, True, True])


def test_the_class_axis():
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((4, 3, 5))
    target = rng.integers(0, 3, (4, 5))
    loss, gradient = loss_and_gradient(logits, target, axis=1)
    other, moved = loss_and_gradient(np.moveaxis(logits, 1, -1), target)
    np.testing.assert_array_equal(loss, other)
    np.testing.assert_array_equal(gradient, np.moveaxis(moved, -1, 1))


@pytest.mark.parametrize("scale", [1e-4, 3.0, 300.0])
def test_the_binary_loss(scale):
    """The binary loss is a loss of two classes with logits x and 0."""
    rng = np.random.default_rng(3)
    x = scale * rng.standard_normal(20)
    target = np.where(rng.random(20) < 0.5, rng.integers(0, 2, 20), rng.random(20))
    weight, pos_weight = (rng.uniform(0.5, 2.0, 20).astype(np.longdouble) for _ in range(2))
    options = {"weight": weight, "pos_weight": pos_weight, "label_smoothing": 0.25}
    losses, gradients = binary_loss_and_gradient(x, target, **options)
    share = np.longdouble(0.75) * target + np.longdouble(0.125)
    for row, q in enumerate(zip(weight * pos_weight * share, weight * (1 - share), strict=True)):
        with mpmath.workdps(DIGITS):
            loss, (gradient, _) = exact([x[row], 0.0], q)
            wanted = wide([loss, gradient])
        np.testing.assert_allclose(losses[row], wanted[0], rtol=TOLERANCE)
        # The two terms of the gradient may cancel.
        np.testing.assert_allclose(gradients[row], wanted[1], rtol=TOLERANCE, atol=TOLERANCE)


def test_reductions_of_the_binary_loss():
    logits, target = np.asarray([[1.0, -2.0], [0.0, 3.0]]), np.asarray([[1, 0], [0, 1]])
    weight = np.asarray([1.0, 3.0])
    losses, gradients = binary_loss_and_gradient(logits, target, weight=weight)
    for reduction, divisor in (("sum", 1.0), ("mean", 4.0), ("weighted_mean", 8.0)):
        value, gradient = binary_loss_and_gradient(
            logits, target, weight=weight, reduction=reduction
        )
        np.testing.assert_allclose(value, losses.sum() / divisor, rtol=TOLERANCE)
        np.testing.assert_allclose(gradient, gradients / divisor, rtol=TOLERANCE)
    value, gradient = binary_loss_and_gradient(
        logits, target, weight=0 * weight, reduction="weighted_mean"
    )
    assert np.isnan(value)
    assert not gradient.any()
