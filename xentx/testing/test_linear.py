"""`linear_cross_entropy` against true values of dense logits, on every route and in chunks.

The allowed error is that of computing the logits in the compute dtype and of summing products: the
unit roundoff times the sum of the magnitudes of the terms.
"""

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle
from xentx.testing._checks import check_linear, linear_truth
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem


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


# Two sets of options are tested with every reduction, the others with one: compiling is slow.
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
        pytest.skip("slow to compile, and tested with other options")
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, (7,), 3, 5, np.float32, soft=soft, reduction=reduction, options=options
    )
    check_linear(route, arrays, {**options, "chunk": 3}, cotangent)


@pytest.mark.parametrize("dtype", oracle.DTYPES.values(), ids=oracle.DTYPES)
@pytest.mark.parametrize(
    ("soft", "reduction"), [(True, "none"), (False, "mean")], ids=["soft-none", "hard-mean"]
)
def test_dtypes(route, dtype, soft, reduction):
    if dtype.name not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(RNG_SEED)
    options = {"weight": True, "label_smoothing": 0.1}
    arrays, options, cotangent = draw(
        rng, (20,), 4, 7, dtype, soft=soft, reduction=reduction, options=options
    )
    check_linear(route, arrays, {**options, "chunk": 8}, cotangent)


@pytest.mark.parametrize(
    "dtypes",
    [("float16", "float32", "float32"), ("float32", "float32", "float16")],
    ids=["hidden", "bias"],
)
def test_mixed_dtypes(route, dtypes):
    """Each gradient has the dtype of its argument. The loss has float32."""
    if "float16" not in route.dtypes:
        pytest.skip(f"{route} has no float16")
    rng = np.random.default_rng(RNG_SEED)
    (hidden, head, target), options, cotangent = draw(
        rng, (7,), 3, 5, np.float32, soft=False, reduction="mean", options={}
    )
    arrays = (hidden.astype(dtypes[0]), head.astype(dtypes[1]), target)
    options["bias"] = options["bias"].astype(dtypes[2])
    check_linear(route, arrays, {**options, "chunk": 3}, cotangent)


def test_nearly_one_class(route):
    """The gradient of the largest class is minus the sum of the others.

    Computed as 1 - p it would be 0.
    """
    if "float16" not in route.dtypes:
        pytest.skip(f"{route} has no float16")
    hidden = np.asarray([[-2.0, -12.0, 0.5]], np.float16)
    head = np.asarray([[6.5, -10.5, 12.0], [-9.0, 12.0, 0.75], [13.0, -7.0, -7.0]], np.float16)
    target = np.asarray([[0.25, 0.0, 1e-6]], np.float32)
    check_linear(route, (hidden, head, target), {"reduction": "sum"}, np.asarray(1, np.float32))


@pytest.mark.parametrize("chunk", [100, "0.05kB", "1 GiB"])
def test_sizes_of_chunks(route, chunk):
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, (7,), 3, 5, np.float32, soft=False, reduction="mean", options={}
    )
    check_linear(route, arrays, {**options, "chunk": chunk}, cotangent)


def test_exact(route):
    """Compute logits and loss in float64, and round once."""
    if not route.has_float64:
        pytest.skip("it needs float64")
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, (20,), 3, 5, np.float32, soft=False, reduction="none", options={}
    )
    truth, *_ = linear_truth(arrays, cotangent, **options)
    value = route.value(xentx.linear_cross_entropy, *arrays, precision="exact", **options)
    assert value.dtype == np.float32
    assert oracle.ulps(value, truth[0]).max() < 0.5001


@pytest.mark.parametrize("rows", [(), (1,), (0,), (2, 3)], ids=str)
def test_rows(route, rows):
    rng = np.random.default_rng(RNG_SEED)
    arrays, options, cotangent = draw(
        rng, rows, 3, 4, np.float32, soft=False, reduction="sum", options={}, bias=False
    )
    check_linear(route, arrays, options, cotangent)


def test_an_ignored_row_may_hold_nan(route):
    """Also for derivatives with respect to the head together with the class weights."""
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(4, 3)).astype("f"), rng.normal(size=(5, 3)).astype("f")
    target, weight = np.array([0, -100, 4, 2], np.int32), np.linspace(0.5, 1.5, 5, dtype="f")
    arguments = {"wrt": (0, 1, "weight"), "weight": weight, "chunk": 2}
    _, expected = route.pull(xentx.linear_cross_entropy, hidden, head, target, **arguments)
    hidden[1] = np.nan
    _, found = route.pull(xentx.linear_cross_entropy, hidden, head, target, **arguments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
