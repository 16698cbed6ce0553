"""The worked example of the documentation: probabilities, losses and gradients to six decimals."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import xentx

LOGITS = np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
TARGET = np.array([1, 2])
LOG_SOFTMAX = [[-1.464369, -0.464369, -1.964369], [-2.216779, -1.816779, -0.316779]]
SOFTMAX = [[0.231224, 0.628532, 0.140244], [0.108960, 0.162549, 0.728492]]
PER_ROW = [0.464369, 0.316779]
GRADIENT_OF_MEAN = [[0.115612, -0.185734, 0.070122], [0.054480, 0.081274, -0.135754]]
SIX_DECIMALS = {"rtol": 0, "atol": 1e-6}


def test_log_softmax(route):
    value = route.value(xentx.log_softmax, LOGITS)
    assert_allclose(value, LOG_SOFTMAX, **SIX_DECIMALS)
    assert_allclose(np.exp(value), SOFTMAX, **SIX_DECIMALS)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("none", PER_ROW), ("mean", 0.390574), ("sum", 0.781147)]
)
def test_loss(route, reduction, expected):
    value = route.value(xentx.cross_entropy, LOGITS, TARGET, reduction=reduction)
    assert_allclose(value, expected, **SIX_DECIMALS)


def test_gradient(route):
    _, gradient = route.pull(xentx.cross_entropy, LOGITS, TARGET)
    assert_allclose(gradient, GRADIENT_OF_MEAN, **SIX_DECIMALS)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_identity(route, reduction):
    """Cross-entropy is log-softmax followed by nll_loss, for values and gradients."""

    def two_steps(logits, target):
        return xentx.nll_loss(xentx.log_softmax(logits), target, reduction=reduction)

    one_value = route.value(xentx.cross_entropy, LOGITS, TARGET, reduction=reduction)
    assert_allclose(route.value(two_steps, LOGITS, TARGET), one_value, rtol=3e-7)
    if route.has_autodiff:
        _, one = route.pull(xentx.cross_entropy, LOGITS, TARGET, reduction=reduction)
        _, two = route.pull(two_steps, LOGITS, TARGET)
        assert_allclose(two, one, rtol=1e-6)


def test_confident_row(route):
    """All native losses return 0 here, and their gradients do not sum to 0."""
    logits = np.array([[20.0, 0.0]], np.float32)
    value, gradient = route.pull(xentx.cross_entropy, logits, np.array([0]))
    assert_allclose(value, 2.06115369e-09, rtol=1e-7)
    assert gradient.sum() == 0.0
    assert_allclose(gradient, [[-2.06115369e-09, 2.06115369e-09]], rtol=1e-7)
