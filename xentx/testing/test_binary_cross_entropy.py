"""`binary_cross_entropy`: special values, options, errors. See also `test_any_problem`."""

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle

INF = np.inf
LOGITS = np.array([[2.0, -1.0, 0.0], [30.0, -30.0, 0.5]], np.float32)
TARGET = np.array([[1, 0, 1], [1, 0, 0]], np.int32)


@pytest.mark.parametrize(
    ("logit", "target", "loss", "gradient"),
    [
        (0.0, 0.0, np.log(2), 0.5),
        (0.0, 1.0, np.log(2), -0.5),
        (0.0, 0.5, np.log(2), 0.0),
        (20.0, 1.0, 2.0611536e-09, -2.0611536e-09),
        (-20.0, 0.0, 2.0611536e-09, 2.0611536e-09),
        (80.0, 0.0, 80.0, 1.0),
        (-80.0, 1.0, 80.0, -1.0),
        (INF, 1.0, 0.0, 0.0),
        (-INF, 0.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0),
        (-INF, 1.0, INF, -1.0),
        (np.nan, 1.0, np.nan, np.nan),
    ],
)
def test_corners(route, logit, target, loss, gradient):
    arrays = np.array([logit], np.float32), np.array([target], np.float32)
    found = route.pull(xentx.binary_cross_entropy, *arrays, reduction="none")
    np.testing.assert_allclose(found[0], [loss], rtol=3e-7)
    np.testing.assert_allclose(found[1], [gradient], rtol=3e-7)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_small_smoothing_keeps_its_digits(route, target):
    """The probability of the wrong class must not be computed as 1 minus that of the right one."""
    arrays = np.full(1, 160.0 * target - 80.0, np.float32), np.full(1, target, np.float32)
    truth = oracle.binary_cross_entropy(*arrays, label_smoothing=0.001)
    value = route.value(xentx.binary_cross_entropy, *arrays, label_smoothing=0.001)
    oracle.assert_within(value, truth.value, truth.value_scale, 4)


def test_of_no_dimensions_and_of_no_elements(route):
    value = route.value(xentx.binary_cross_entropy, np.float32(0.0), np.float32(1.0))
    np.testing.assert_allclose(value, np.log(2), rtol=3e-7)
    empty = np.zeros((0, 3), np.float32)
    assert np.isnan(route.value(xentx.binary_cross_entropy, empty, empty))
    assert route.value(xentx.binary_cross_entropy, empty, empty, reduction="none").shape == (0, 3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_weights_broadcast(route, name, shape):
    rng = np.random.default_rng(0)
    options = {name: rng.uniform(0.5, 2, shape).astype(np.float32)}
    for reduction in ("mean", "weighted_mean"):
        truth = oracle.binary_cross_entropy(LOGITS, TARGET, reduction=reduction, **options)
        value = route.value(
            xentx.binary_cross_entropy, LOGITS, TARGET, reduction=reduction, **options
        )
        oracle.assert_within(value, truth.value, truth.value_scale, 8)


@pytest.mark.parametrize("wrt", [1, "weight", "pos_weight", "label_smoothing"])
def test_derivatives_with_respect_to_the_other_arguments(route, wrt):
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    if "float64" not in route.dtypes:
        pytest.skip(f"{route} has no float64")
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3)), rng.random((2, 3))
    options = {
        "weight": rng.uniform(0.5, 2, 3),
        "pos_weight": rng.uniform(0.5, 2, (2, 1)),
        "label_smoothing": np.asarray(0.1),
    }
    function = xentx.binary_cross_entropy
    _, gradient = route.pull(function, logits, target, wrt=wrt, reduction="sum", **options)

    def value(array):
        given = {**options, wrt: array} if isinstance(wrt, str) else options
        other = target if isinstance(wrt, str) else array
        return float(function(logits, other, reduction="sum", **given))

    base, step = options[wrt] if isinstance(wrt, str) else target, 1e-6
    expected = np.zeros_like(base)
    for at in np.ndindex(*base.shape):
        shift = np.zeros_like(base)
        shift[at] = step
        expected[at] = (value(base + shift) - value(base - shift)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([[0.0]], [[1.0]]), {}, TypeError, "logits: got a list; expected an array of NumPy"),
        ((LOGITS, TARGET[0]), {}, ValueError, r"target: got shape \(3,\); expected \(2, 3\)"),
        ((LOGITS, TARGET > 0), {}, TypeError, "target: got dtype bool; expected float16"),
        ((TARGET, TARGET), {}, TypeError, "logits: got dtype int32; expected float16"),
        (
            (LOGITS, TARGET),
            {"weight": [1.0, 2.0]},
            ValueError,
            r"weight: got shape \(2,\); expected one that broadcasts to \(2, 3\)",
        ),
        ((LOGITS, TARGET), {"reduction": "max"}, ValueError, "reduction: got 'max'; expected"),
        (
            (LOGITS, TARGET),
            {"label_smoothing": 2.0},
            ValueError,
            "label_smoothing: got 2.0; expected 0 <= label_smoothing <= 1",
        ),
    ],
)
def test_errors(arguments, options, error, text):
    with pytest.raises(error, match=text):
        xentx.binary_cross_entropy(*arguments, **options)
