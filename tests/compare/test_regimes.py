"""Properties of the regimes."""

import numpy as np
import pytest

from xentx.compare._floats import FORMATS
from xentx.compare.regimes import DEFAULT_REGIMES, REGIMES

SMALL = [name for name in REGIMES if "50257" not in name and "262144" not in name]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", SMALL)
def test_logits_are_of_the_dtype(name, dtype):
    if REGIMES[name].needs:
        pytest.importorskip(REGIMES[name].needs)
    case = REGIMES[name].case(dtype, seed=0)
    np.testing.assert_array_equal(FORMATS[dtype].round(case.logits), case.logits)
    assert case.target.shape == case.logits.shape[:1]
    assert ((case.target >= 0) & (case.target < case.logits.shape[1])).all()


def test_a_seed_determines_a_regime():
    first, again, other = (REGIMES["normal-10"].case("float32", seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert (first.logits != other.logits).any()


def test_confident_rows_have_a_loss_that_natives_round_to_0():
    case = REGIMES["confident-10"].case("float32", seed=0)
    own = np.take_along_axis(case.logits, case.target[:, None], axis=1)
    rest = np.sort(case.logits, axis=1)[:, -2:-1]
    assert (own - rest > 14.0).all()
    assert np.mean(own - rest > 24 * np.log(2)) > 0.9


def test_digits_are_a_classifiers(frameworks):
    pytest.importorskip("sklearn")
    case = REGIMES["digits"].case("float32", seed=0)
    assert case.logits.shape == (1797, 10)
    assert np.mean(case.logits.argmax(axis=1) == case.target) > 0.9


def test_the_default_regimes_exist():
    assert set(DEFAULT_REGIMES) <= set(REGIMES)
