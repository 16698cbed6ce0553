"""`linear_kl_divergence` against `kl_divergence` of the logits. See also `test_any_problem`."""

import numpy as np
import pytest

import xentx

NAN, INF = np.nan, np.inf
WAYS = {"forward": {}, "reverse": {"direction": "reverse"}, "mixture": {"beta": 0.3}}
RNG = np.random.default_rng(0)
ROWS, CLASSES = 7, 5
HIDDEN, HEAD = RNG.normal(size=(ROWS, 3)).astype("f"), RNG.normal(size=(CLASSES, 3)).astype("f")
OTHER, OTHER_HEAD = (RNG.normal(size=(n, 2)).astype("f") for n in (ROWS, CLASSES))
BIAS = RNG.normal(size=CLASSES).astype("f")
FACTORS = (HIDDEN, HEAD, OTHER, OTHER_HEAD)


def both(bias=0.0):
    """Compute the logits of both layers."""
    return HIDDEN @ HEAD.T + bias, OTHER @ OTHER_HEAD.T + bias


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_ways(route, way, reduction):
    options = {"reduction": reduction, **WAYS[way]}
    expected, slope = route.pull(xentx.kl_divergence, *both(), **options)
    for chunk in (3, "auto"):
        value, found = route.pull(
            xentx.linear_kl_divergence, *FACTORS, wrt=(0, 1), chunk=chunk, **options
        )
        np.testing.assert_allclose(value, expected, rtol=2e-6)
        np.testing.assert_allclose(found[0], slope @ HEAD, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], slope.T @ HIDDEN, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_rows(route, shape):
    rng = np.random.default_rng(1)
    hidden, other = rng.normal(size=(*shape, 3)).astype("f"), rng.normal(size=(*shape, 2))
    arrays = hidden, HEAD, other.astype("f"), OTHER_HEAD
    expected = route.value(
        xentx.kl_divergence, hidden @ HEAD.T, arrays[2] @ OTHER_HEAD.T, axis=-1, reduction="none"
    )
    found = route.value(xentx.linear_kl_divergence, *arrays, reduction="none")
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equal_layers(route):
    for way in WAYS.values():
        value, found = route.pull(
            xentx.linear_kl_divergence, HIDDEN, HEAD, HIDDEN, HEAD, wrt=(0, 1), **way
        )
        assert value == 0
        assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_do_not_count(route, way):
    keep = np.array([True, False, True, True, False, True, True])
    options = {**WAYS[way], "chunk": 3}
    kept = HIDDEN[keep], HEAD, OTHER[keep], OTHER_HEAD
    expected = route.pull(xentx.linear_kl_divergence, *kept, wrt=(0, 1), **options)
    damaged = [a.copy() for a in FACTORS]
    damaged[0][~keep], damaged[2][~keep] = NAN, INF
    found = route.pull(xentx.linear_kl_divergence, *damaged, wrt=(0, 1), where=keep, **options)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1][1], expected[1][1], rtol=1e-5, atol=1e-6)
    assert not found[1][0][~keep].any()


def test_a_class_that_both_leave_out(route):
    bias = BIAS.copy()
    bias[2] = -INF
    options = {"bias": bias, "reference_bias": bias}
    expected = route.value(xentx.kl_divergence, *both(bias))
    value, found = route.pull(xentx.linear_kl_divergence, *FACTORS, wrt=(0, 1), chunk=3, **options)
    assert np.isfinite(value)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not found[1][2].any()


@pytest.mark.parametrize("wrt", [0, 1, 2, 3, "bias", "reference_bias", "temperature"])
def test_derivatives_of_every_argument(route, wrt):
    if not route.has_autodiff or "float64" not in route.dtypes:
        pytest.skip(f"{route} has no autodiff, or no float64")
    arrays = dict(enumerate(a.astype("d") for a in FACTORS))
    more = {"bias": BIAS.astype("d"), "reference_bias": -BIAS.astype("d")}
    arrays |= more | {"temperature": np.array(1.5)}
    given, options = [arrays[i] for i in range(4)], {k: arrays[k] for k in (*more, "temperature")}
    options |= {"beta": 0.3, "chunk": 3}
    _, gradient = route.pull(xentx.linear_kl_divergence, *given, wrt=wrt, **options)
    expected, step = np.zeros_like(arrays[wrt]), 1e-6
    for at in np.ndindex(*expected.shape):
        values = []
        for sign in (1, -1):
            changed = arrays[wrt].copy()
            changed[at] += sign * step
            now = {**arrays, wrt: changed}
            options |= {k: now[k] for k in (*more, "temperature")}
            values.append(xentx.linear_kl_divergence(*(now[i] for i in range(4)), **options))
        expected[at] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "options", "error", "text"),
    [
        ({0: [[0.0]]}, {}, TypeError, "hidden: got a list; expected an array of NumPy"),
        ({1: HEAD[:, :2]}, {}, ValueError, r"^head: got shape \(5, 2\); expected \(classes, 3\)"),
        (
            {3: OTHER_HEAD[:, :1]},
            {},
            ValueError,
            r"reference_head: got shape \(5, 1\); expected \(classes, 2\) for reference_hidden",
        ),
        ({2: OTHER[:3]}, {}, ValueError, r"reference_hidden: got shape \(3, 2\); expected \(7,\)"),
        (
            {3: OTHER_HEAD[:4]},
            {},
            ValueError,
            r"reference_head: got shape \(4, 2\); expected 5 classes",
        ),
        ({3: OTHER_HEAD.astype(int)}, {}, TypeError, "reference_head: got dtype int64; expected"),
        ({}, {"reference_bias": BIAS[:4]}, ValueError, r"reference_bias: got shape \(4,\)"),
        ({}, {"beta": 1.5}, ValueError, "beta: got 1.5; expected 0 <= beta <= 1"),
        ({}, {"chunk": 0}, ValueError, "chunk: got 0; expected at least 1 row"),
        ({}, {"where": np.ones(3, bool)}, ValueError, r"where: got shape \(3,\); expected \(7,"),
        ({}, {"sample_weight": np.ones(3)}, ValueError, r"sample_weight: got shape \(3,\)"),
        ({}, {"temperature": 0.0}, ValueError, "temperature: got 0.0"),
    ],
)
def test_errors(changes, options, error, text):
    arrays = [changes.get(i, array) for i, array in enumerate(FACTORS)]
    with pytest.raises(error, match=text):
        xentx.linear_kl_divergence(*arrays, **options)
