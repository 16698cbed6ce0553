"""`kl_divergence`: special values, options, errors. See also `test_any_problem`."""

import numpy as np
import pytest

import xentx

INF, NAN = np.inf, np.nan
A = np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
B = np.array([[1.5, 1.0, 0.5], [0.0, 0.5, 1.0]], np.float32)
WAYS = {"forward": {}, "reverse": {"direction": "reverse"}, "mixture": {"beta": 0.5}}


@pytest.mark.parametrize(
    ("logits", "reference", "forward", "reverse", "mixture"),
    [
        ([1.0, 2.0, 0.5], [1.5, 1.0, 0.5], 0.23014342, 0.22882066, 0.05609573),
        ([1.0, 2.0, 0.5], [11.0, 12.0, 10.5], 0.0, 0.0, 0.0),
        ([100.0, 0.0], [0.0, 100.0], 100.0, 100.0, np.log(2)),
        ([1.0, 2.0, -INF], [2.0, 1.0, -INF], 0.46211716, 0.46211716, 0.11094407),
        ([1.0, 2.0, -INF], [1.0, 2.0, 2.0], INF, 0.54873312, 0.17497403),
        ([1.0, 2.0, NAN], [1.0, 2.0, 2.0], NAN, NAN, NAN),
        ([-INF, -INF, -INF], [1.0, 2.0, 2.0], NAN, NAN, NAN),
        ([1.0, 2.0, 2.0], [1.0, INF, 2.0], NAN, NAN, NAN),
        ([3.0], [-2.0], 0.0, 0.0, 0.0),
    ],
)
def test_corners(route, logits, reference, forward, reverse, mixture):
    x, y = np.array([logits], np.float32), np.array([reference], np.float32)
    values = [route.value(xentx.kl_divergence, x, y, **way) for way in WAYS.values()]
    np.testing.assert_allclose(values, [forward, reverse, mixture], rtol=1e-6)


def test_equal_distributions(route):
    for way in WAYS.values():
        value, gradient = route.pull(xentx.kl_divergence, A, A, **way)
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_do_not_count(route, way):
    x, y = A.copy(), B.copy()
    x[1], y[1] = [NAN, INF, 0.0], [-INF, -INF, NAN]
    where = np.array([True, False])
    options = {"where": where, **WAYS[way]}
    expected = route.pull(xentx.kl_divergence, A[:1], B[:1], **WAYS[way])
    found = route.pull(xentx.kl_divergence, x, y, **options)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1][:1], expected[1], rtol=1e-6)
    assert not found[1][1].any()
    nothing = route.pull(xentx.kl_divergence, x, y, **{**options, "where": where & False})
    assert np.isnan(nothing[0])
    assert not nothing[1].any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrt", [0, 1, "temperature"])
def test_derivatives_of_every_argument(route, way, wrt):
    if not route.has_autodiff or "float64" not in route.dtypes:
        pytest.skip(f"{route} has no autodiff, or no float64")
    rng = np.random.default_rng(0)
    arrays = {0: rng.normal(size=(3, 4)), 1: rng.normal(size=(3, 4)), "temperature": np.array(1.5)}

    def value(changed):
        x, y, temperature = ({**arrays, wrt: changed}[key] for key in arrays)
        return float(
            xentx.kl_divergence(x, y, temperature=temperature, reduction="sum", **WAYS[way])
        )

    options = {"temperature": arrays["temperature"], "reduction": "sum", **WAYS[way]}
    _, gradient = route.pull(xentx.kl_divergence, arrays[0], arrays[1], wrt=wrt, **options)
    expected, step = np.zeros_like(arrays[wrt]), 1e-6
    for at in np.ndindex(*expected.shape):
        shift = np.zeros_like(expected)
        shift[at] = step
        expected[at] = (value(arrays[wrt] + shift) - value(arrays[wrt] - shift)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)


def test_cross_entropy_differs_by_the_entropy_of_the_target(route):
    target = np.exp(B) / np.exp(B).sum(-1, keepdims=True)
    entropy = -(target * np.log(target)).sum(-1).mean()
    loss = route.value(xentx.cross_entropy, A, target)
    divergence = route.value(xentx.kl_divergence, A, B)
    np.testing.assert_allclose(loss - entropy, divergence, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([[0.0]], B), {}, TypeError, "logits: got a list; expected an array of NumPy"),
        ((A, B[0]), {}, ValueError, r"reference_logits: got shape \(3,\); expected \(2, 3\)"),
        ((A, B.astype(int)), {}, TypeError, "reference_logits: got dtype int64; expected float16"),
        ((A, B), {"beta": 1.5}, ValueError, "beta: got 1.5; expected 0 <= beta <= 1"),
        ((A, B), {"beta": "half"}, TypeError, "beta: got a str; expected a number or None"),
        ((A, B), {"direction": "back"}, ValueError, "direction: got 'back'; expected 'forward'"),
        (
            (A, B),
            {"direction": "reverse", "beta": 0.5},
            ValueError,
            "direction: got 'reverse' with beta; expected one of the two",
        ),
        ((A, B), {"temperature": 0.0}, ValueError, "temperature: got 0.0; expected 0 < temp"),
        (
            (A, B),
            {"where": np.ones(3, bool)},
            ValueError,
            r"where: got shape \(3,\); expected \(2,",
        ),
        ((A, B), {"where": np.ones(2)}, TypeError, "where: got dtype float64; expected bool"),
        ((A, B), {"sample_weight": np.ones(3)}, ValueError, r"sample_weight: got shape \(3,\)"),
        ((A, B), {"normalizer": 2, "reduction": "sum"}, ValueError, "normalizer: got reduction='s"),
    ],
)
def test_errors(arguments, options, error, text):
    with pytest.raises(error, match=text):
        xentx.kl_divergence(*arguments, **options)
