"""linear_cross_entropy against the truth of dense logits, on every route and by chunks.

The error allowed is that of forming the logits in the compute dtype and of summing products: the
unit of rounding times the sum of the magnitudes of what is added.
"""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

import xentx
from xentx.testing import _oracle as oracle
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem

LONG = oracle.LONG
UNITS = 12


def draw(rng, rows, features, classes, dtype, *, soft, reduction, options, bias=True):
    """Draw the arrays of a problem, its options and a cotangent."""
    hidden = rng.normal(size=(*rows, features)).astype(dtype)
    head = rng.normal(size=(classes, features)).astype(dtype)
    shape = (*rows, classes)
    _, target, options, _ = draw_problem(
        rng, shape, len(rows), np.float32, soft=soft, reduction=reduction, options=options
    )
    del options["axis"]
    if bias:
        options["bias"] = rng.normal(size=classes).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    cotangent = rng.normal(size=rows if reduction == "none" else ()).astype(wide)
    return (hidden, head, target), options, cotangent


def truth_of(arrays, options, cotangent):
    """Value and gradients by hidden, head and bias, each with its scale."""
    hidden, head, target = (np.asarray(a) for a in arrays)
    rest = dict(options)
    rest.pop("chunk", None)
    bias = rest.pop("bias", None)
    h, w = hidden.astype(LONG), head.astype(LONG)
    b = np.zeros(len(w), LONG) if bias is None else bias.astype(LONG)
    logits = np.matmul(h, w.T) + b
    dense = oracle.cross_entropy(logits, target, axis=-1, **rest, cotangent=cotangent)
    slope = dense.gradient
    # What an error of the logits makes of the loss, and of its gradient.
    blur = (np.matmul(np.abs(h), np.abs(w.T)) + np.abs(b)).max(initial=0)
    flat = slope.reshape(-1, len(w))
    size = np.abs(dense.gradient_scale).reshape(flat.shape) * (1 + 2 * blur)
    rows, magnitude = (a.reshape(-1, h.shape[-1]) for a in (h, np.abs(h)))
    value_scale = dense.value_scale + 2 * blur * _mass(dense, flat.shape, cotangent, rest)
    return (
        (dense.value, value_scale),
        ((flat @ w).reshape(h.shape), (size @ np.abs(w)).reshape(h.shape)),
        (flat.T @ rows, size.T @ magnitude),
        (flat.sum(0), size.sum(0)),
    )


def _mass(dense, shape, cotangent, options):
    """Sum of the magnitudes of the loss's slopes: how much an error of the logits weighs."""
    total = np.abs(dense.gradient_scale).reshape(shape).sum(-1)
    if options.get("reduction") == "none":
        return (total / np.maximum(np.abs(cotangent).ravel(), 1e-30)).reshape(dense.value.shape)
    return total.sum() / max(abs(float(cotangent)), 1e-30)


def check(route, arrays, options, cotangent, units=UNITS):
    """Compare the value and all gradients with the truth."""
    truth, *gradients = truth_of(arrays, options, cotangent)
    wrt = (0, 1, "bias") if "bias" in options else (0, 1)
    value, found = route.pull(
        xentx.linear_cross_entropy, *arrays, cotangent=cotangent, wrt=wrt, **options
    )
    assert value.dtype == cotangent.dtype
    oracle.assert_within(value, *truth, units)
    arguments = [*arrays[:2], *([options["bias"]] if "bias" in options else [])]
    # Soft targets have a gradient too, where a function of NumPy returns all that there are.
    for argument, gradient, (true, scale) in zip(arguments, found, gradients, strict=False):
        assert gradient.dtype == argument.dtype
        # Summed up in the compute dtype, then rounded once to that of the argument.
        ratio = oracle.epsilon(value.dtype) / oracle.epsilon(gradient.dtype)
        oracle.assert_within(gradient, true, scale * ratio + np.abs(true), units)


# Everything is reduced in every way; of the rest one way is enough, and compilers are slow.
CASES = [
    pytest.param(soft, reduction, options, id=f"{name}-{'soft' if soft else 'hard'}-{reduction}")
    for name, options in OPTIONS.items()
    for soft in (False, True)
    for reduction in REDUCTIONS
    if name in ("plain", "everything") or reduction == ("none" if soft else "mean")
]


@pytest.mark.parametrize(("soft", "reduction", "options"), CASES)
def test_options(route, options, soft, reduction):
    if route.traced and options not in (OPTIONS["plain"], OPTIONS["everything"]):
        pytest.skip("takes long to compile, and differs by no option")
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, (7,), 3, 5, np.float32, soft=soft, reduction=reduction, options=options
    )
    check(route, arrays, {**options, "chunk": 3}, cotangent)


@st.composite
def problems(draw_from):
    """Draw the sizes of a problem, its options, and the rows of a chunk."""

    def flag():
        return draw_from(st.booleans())

    sizes = {
        "rows": (draw_from(st.integers(1, 9)),),
        "features": draw_from(st.integers(1, 5)),
        "classes": draw_from(st.integers(1, 9)),
        "soft": flag(),
        "bias": flag(),
        "reduction": draw_from(st.sampled_from(REDUCTIONS)),
    }
    options = {
        "weight": flag(),
        "sample_weight": flag(),
        "ignore": flag(),
        "label_smoothing": draw_from(st.sampled_from([0.0, 0.1, 0.7, 1.0])),
        "z_loss": draw_from(st.sampled_from([0.0, 0.02])),
        "logit_softcap": draw_from(st.sampled_from([None, 3.0])),
        "normalizer": draw_from(st.sampled_from([None, 2.5])),
    }
    options = {name: value for name, value in options.items() if value}
    chunk = draw_from(st.sampled_from(["auto", 1, 2, 4, 20]))
    return sizes, options, chunk, draw_from(st.integers(0, 99))


def test_any_options(route):
    """Whatever goes together, with the kernel and without, and however the rows are split."""

    # Compilers compile once for each.
    @settings(max_examples=10 if route.traced else 60)
    @given(problems())
    def run(problem):
        sizes, options, chunk, seed = problem
        rng = np.random.default_rng(seed)
        arrays, options, cotangent = draw(rng, dtype=np.float32, options=options, **sizes)
        # A mean of nothing is among the corners.
        assume(np.any(arrays[2] != options.get("ignore_index")))
        check(route, arrays, {**options, "chunk": chunk}, cotangent)

    run()


@pytest.mark.parametrize("dtype", oracle.DTYPES.values(), ids=oracle.DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_dtypes(route, dtype, reduction):
    if dtype.name not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(RNG_SEED)
    options = {"weight": True, "label_smoothing": 0.1}
    for soft in (False, True):
        arrays, given_options, cotangent = draw(
            rng, (20,), 4, 7, dtype, soft=soft, reduction=reduction, options=options
        )
        check(route, arrays, {**given_options, "chunk": 8}, cotangent)


@pytest.mark.parametrize(
    "dtypes",
    [("float16", "float32", "float32"), ("float32", "float32", "float16")],
    ids=["hidden", "bias"],
)
def test_mixed_dtypes(route, dtypes):
    """Each gradient has the dtype of its argument; the loss is float32."""
    if "float16" not in route.dtypes:
        pytest.skip(f"{route} has no float16")
    rng = np.random.default_rng(RNG_SEED)
    (hidden, head, target), options, cotangent = draw(
        rng, (7,), 3, 5, np.float32, soft=False, reduction="mean", options={}
    )
    arrays = (hidden.astype(dtypes[0]), head.astype(dtypes[1]), target)
    options["bias"] = options["bias"].astype(dtypes[2])
    check(route, arrays, {**options, "chunk": 3}, cotangent)


def test_chunk_of_more_rows_than_there_are(route):
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, (7,), 3, 5, np.float32, soft=False, reduction="mean", options={}
    )
    check(route, arrays, {**options, "chunk": 100}, cotangent)


def test_exact(route):
    """Logits and loss in float64, rounded once."""
    if not route.has_float64:
        pytest.skip("it takes float64")
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, (20,), 3, 5, np.float32, soft=False, reduction="none", options={}
    )
    truth, *_ = truth_of(arrays, options, cotangent)
    value = route.value(xentx.linear_cross_entropy, *arrays, precision="exact", **options)
    assert value.dtype == np.float32
    assert oracle.ulps(value, truth[0]).max() < 0.5001


@pytest.mark.parametrize("rows", [(), (1,), (0,), (2, 3)], ids=str)
def test_rows(route, rows):
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, rows, 3, 4, np.float32, soft=False, reduction="sum", options={}, bias=False
    )
    check(route, arrays, options, cotangent)
