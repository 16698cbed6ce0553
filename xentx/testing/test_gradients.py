"""Hand-written gradients against autodiff, and gradients with respect to other arguments.

`test_values` compares gradients with respect to the logits with true values.
"""

import numpy as np
import pytest

import xentx

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(0, 2, (4, 5))
LOGITS[0, :2] = 3.0  # tied maxima
LOGITS[1] = 0.0  # all tied, as at initialisation
TARGET = np.array([1, 2, 0, -100])
SOFT = RNG.gamma(1.0, size=(4, 5))
WEIGHT = RNG.uniform(0.5, 2, 5)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradient_by_a_soft_target(route, reduction):
    """``w_k (lse - x_k)``, and with reduction "mean" also the derivative of the divisor."""
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    logits, target = LOGITS.astype(np.float32), SOFT.astype(np.float32)
    _, gradient = route.pull(
        xentx.cross_entropy, logits, target, wrt=1, weight=WEIGHT.astype(np.float32),
        reduction=reduction,
    )  # fmt: skip
    losses = np.log(np.exp(LOGITS).sum(-1, keepdims=True)) - LOGITS
    expected = WEIGHT * losses / (4 if reduction == "mean" else 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("function", [xentx.cross_entropy, xentx.nll_loss])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_value_and_grad_is_autodiff(route, function, reduction):
    """The hand-written gradient equals the gradient from autodiff, for a non-uniform cotangent."""
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    logits = LOGITS.astype(np.float32)
    cotangent = np.float32(1.7) if reduction != "none" else np.float32([1, -2, 3, 4])
    options = {"weight": WEIGHT.astype(np.float32), "reduction": reduction}
    value, gradient = route.pull(
        function, logits, TARGET, cotangent=np.asarray(cotangent), **options
    )
    own = xentx.value_and_grad(function)
    by_hand = route.value(
        lambda *a, **k: own(*a, **k)[1], logits, TARGET, cotangent=np.asarray(cotangent), **options
    )
    np.testing.assert_allclose(by_hand, gradient, rtol=1e-6, atol=1e-9)
    first = route.value(lambda *a, **k: own(*a, **k)[0], logits, TARGET, **options)
    np.testing.assert_array_equal(first, value)
