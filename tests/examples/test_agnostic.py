"""The example of a framework-agnostic library has the same results in each framework."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xentx.testing import requested_frameworks

HERE = Path(__file__).parents[2] / "examples" / "agnostic"


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        import digits

        yield digits


@pytest.fixture(scope="module")
def expected(digits):
    return digits.run("numpy", k=2)


def test_it_learns(expected):
    """It predicts most of the held-out digits correctly."""
    accuracy = np.mean([score.accuracy for score in expected.scores])
    assert 0.94 < accuracy < 0.99
    assert len(expected.scores) == 2


@pytest.mark.parametrize("framework", requested_frameworks())
def test_the_same_coefficients(digits, expected, framework):
    found = digits.run(framework, k=2)
    for ours, numpys in zip(found.coefficients, expected.coefficients, strict=True):
        np.testing.assert_allclose(ours, numpys, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


def test_the_library_imports_no_framework():
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import softmax_regression\n"
        "print([name for name in ('torch', 'jax', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
