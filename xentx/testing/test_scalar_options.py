"""Options as arrays with no dimensions, concrete or traced. Concrete ones are checked."""

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle
from xentx.testing._problems import REDUCTIONS, RNG_SEED, draw_problem

NUMBERS = {"label_smoothing": 0.125, "z_loss": 0.0625, "logit_softcap": 4.0, "temperature": 1.5}
OUT_OF_RANGE = {
    "label_smoothing": (-0.25, 1.5, np.nan),
    "z_loss": (-0.25, np.inf, np.nan),
    "logit_softcap": (0.0, -1.0, np.inf, np.nan),
    "temperature": (0.0, -1.0, np.inf, np.nan),
}
ONE_BY_ONE = [{name: value} for name, value in NUMBERS.items()]


def arrays(numbers, dtype=np.float32):
    return {name: np.asarray(value, dtype) for name, value in numbers.items()}


def draw(*, soft=False, reduction="mean"):
    return draw_problem(
        np.random.default_rng(RNG_SEED),
        (6, 5),
        1,
        np.float32,
        soft=soft,
        reduction=reduction,
        options={"weight": True, "ignore": not soft},
    )


# All options together are tested with every reduction, each alone with one: compiling is slow.
CASES = [
    *((NUMBERS, reduction) for reduction in REDUCTIONS),
    *((numbers, "mean") for numbers in ONE_BY_ONE),
]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    ("numbers", "reduction"), CASES, ids=["-".join((*numbers, way)) for numbers, way in CASES]
)
def test_values_and_gradients(route, numbers, soft, reduction):
    logits, target, options, cotangent = draw(soft=soft, reduction=reduction)
    truth = oracle.cross_entropy(logits, target, cotangent=cotangent, **numbers, **options)
    value, gradient = route.pull(
        xentx.cross_entropy, logits, target, cotangent=cotangent, **arrays(numbers), **options
    )
    oracle.assert_within(value, truth.value, truth.value_scale, 6)
    oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, 12)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
@pytest.mark.parametrize("name", NUMBERS)
def test_derivatives_with_respect_to_an_option(route, name, reduction, soft):
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    logits, target, options, _ = draw(soft=soft, reduction=reduction)
    _, gradient = route.pull(
        xentx.cross_entropy, logits, target, wrt=name, **arrays(NUMBERS), **options
    )
    step = 2.0**-12

    def shifted(by):
        numbers = {**NUMBERS, name: np.longdouble(NUMBERS[name]) + by}
        return oracle.cross_entropy(logits, target, **numbers, **options).value

    expected = (shifted(step) - shifted(-step)) / (2 * step)
    np.testing.assert_allclose(gradient, np.float64(expected), rtol=5e-6)


def linear(hidden, head, target, **options):
    return xentx.linear_cross_entropy(hidden, head, target, chunk=2, **options)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_cross_entropy(route, dtype, reduction):
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = (rng.normal(size=s).astype(oracle.DTYPES[dtype]) for s in ((6, 4), (5, 4)))
    target = rng.integers(0, 5, 6).astype(np.int32)
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    expected = xentx.cross_entropy(logits, target, reduction=reduction, **NUMBERS)
    value = route.value(linear, hidden, head, target, reduction=reduction, **arrays(NUMBERS))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if not route.has_autodiff:
        return
    gradients = [
        route.pull(linear, hidden, head, target, wrt=(0, 1, *keys), reduction=reduction, **given)[1]
        for keys, given in (((), NUMBERS), (tuple(NUMBERS), arrays(NUMBERS)))
    ]
    for by_number, by_array in zip(*gradients, strict=False):
        # Autodiff rounds the sums over chunks to the dtype of the factors.
        units = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 0.02, "atol": 2e-3}
        np.testing.assert_allclose(
            by_array.astype(np.float32), by_number.astype(np.float32), **units
        )
    dense = [
        xentx.cross_entropy(logits, target, reduction=reduction, **{**NUMBERS, name: moved}).sum()
        for name, value in NUMBERS.items()
        for moved in (value * (1 + 2**-12), value * (1 - 2**-12))
    ]
    slopes = [
        (above - below) / (value * 2**-11)
        for above, below, value in zip(dense[::2], dense[1::2], NUMBERS.values(), strict=True)
    ]
    np.testing.assert_allclose([float(g) for g in gradients[1][2:]], slopes, rtol=1e-5)


def finished(logits, target, z_loss, **options):
    state = xentx.partials(logits, target, classes=5, **options)
    return xentx.finish(state, z_loss=z_loss)


def per_row_loss(logits, target, **options):
    return xentx.per_row(logits, target, **options).loss


def entropy(logits, target, **options):
    return xentx.per_row(logits, target, **options).entropy


def linear_entropy(logits, target, **options):
    head = np.eye(5, dtype=np.float32)
    return xentx.linear_per_row(logits, head, target, chunk=2, **options).entropy


@pytest.mark.parametrize("function", [finished, per_row_loss, entropy, linear_entropy])
def test_rows(route, function):
    logits, target, *_ = draw()
    expected = function(logits.astype(np.float64), target, **NUMBERS)
    value = route.value(function, logits, target, **arrays(NUMBERS))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "number"), [(n, v) for n in NUMBERS for v in OUT_OF_RANGE[n]])
@pytest.mark.parametrize("function", [xentx.cross_entropy, linear_entropy, per_row_loss])
def test_out_of_range(route, name, number, function):
    """An error if the value is concrete, NaN if it is traced."""
    logits, target, *_ = draw()
    option = arrays({name: number})
    if not route.traced:
        with pytest.raises(ValueError, match=f"^{name}: got {number}; expected 0 <"):
            route.value(function, logits, target, **option)
    elif function is not linear_entropy or name in ("logit_softcap", "temperature"):
        assert np.all(np.isnan(route.value(function, logits, target, **option)))


@pytest.mark.parametrize("name", NUMBERS)
def test_wrong_arrays(route, name):
    logits, target, *_ = draw()
    with pytest.raises(ValueError, match=rf"^{name}: got shape \(1,\); expected a number or a 0-d"):
        route.value(xentx.cross_entropy, logits, target, **{name: np.ones(1, np.float32)})
    with pytest.raises(TypeError, match=f"^{name}: got dtype bool; expected float16"):
        route.value(xentx.cross_entropy, logits, target, **{name: np.asarray(True)})


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_numbers_of_numpy(route, kind):
    """NumPy scalars and arrays with any framework's logits are read as numbers."""
    logits, target, *_ = draw()
    expected = route.value(xentx.cross_entropy, logits, target, label_smoothing=1.0)
    for one in (kind(1), np.asarray(1, kind)):
        value = route.value(lambda x, t, o=one: xentx.cross_entropy(x, t, label_smoothing=o),
                            logits, target)  # fmt: skip
        np.testing.assert_array_equal(value, expected)
