"""`kl_divergence` of nearly equal distributions, against mpmath."""

import mpmath
import numpy as np
import pytest

import xentx


def exact(x, y, beta):
    """Divergence of one row, computed with 60 digits."""
    with mpmath.workdps(60):

        def softmax(row):
            e = [mpmath.exp(mpmath.mpf(float(v))) for v in row]
            return [v / mpmath.fsum(e) for v in e]

        def kl(a, b):
            return mpmath.fsum(v * mpmath.log(v / w) for v, w in zip(a, b, strict=True))

        p, q = softmax(x), softmax(y)
        if beta in (0, 1):
            return float(kl(q, p) if beta == 0 else kl(p, q))
        m = [beta * w + (1 - beta) * v for v, w in zip(p, q, strict=True)]
        return float(beta * kl(q, m) + (1 - beta) * kl(p, m))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_nearly_equal_distributions_keep_their_digits(route, beta, distance, shift):
    """The relative error is a few units, also for values of 1e-14."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (20, 10)).astype(np.float32)
    y = (x.astype(np.float64) + distance * rng.normal(size=x.shape) + shift).astype(np.float32)
    found = route.value(xentx.kl_divergence, x, y, beta=beta, reduction="none")
    true = np.array([exact(*rows, beta) for rows in zip(x, y, strict=True)])
    np.testing.assert_allclose(found, true, rtol=1e-6, atol=1e-37)
