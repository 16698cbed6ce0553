"""`per_row` against true values, splits of the classes into blocks, and normalizers."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import xentx
from xentx._registry import require
from xentx.testing._checks import (
    VALUE_UNITS,
    check_rows,
    linear_stats_of,
    row_truth,
    split_loss,
    stacked,
    stats_of,
)
from xentx.testing._problems import OPTIONS, RNG_SEED, draw_problem

NONE = {"plain", "weight", "ignore", "smoothing", "z loss", "softcap", "everything"}
ROW_OPTIONS = {name: options for name, options in OPTIONS.items() if name in NONE}


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", ROW_OPTIONS.values(), ids=ROW_OPTIONS)
def test_per_row(route, options, soft):
    if route.traced and options not in (OPTIONS["plain"], OPTIONS["everything"]):
        pytest.skip("slow to compile, and tested with other options")
    rng = np.random.default_rng(RNG_SEED)
    logits, target, options, _ = draw_problem(
        rng, (6, 5), 1, np.float32, soft=soft, reduction="none", options=options
    )
    options.pop("sample_weight", None)
    loss = route.value(xentx.cross_entropy, logits, target, **options)
    del options["reduction"]
    found = route.value(stats_of, logits, target, **options)
    # A compiler may fuse the fields, and round them differently.
    np.testing.assert_array_max_ulp(found[0], loss, 2 if route.traced else 0)
    check_rows(found, row_truth(logits, target, **options), VALUE_UNITS)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_linear_per_row(route, soft):
    rng = np.random.default_rng(RNG_SEED)
    hidden = rng.normal(size=(7, 3)).astype(np.float64)
    head = rng.normal(size=(5, 3)).astype(np.float64)
    _, target, _, _ = draw_problem(
        rng, (7, 5), 1, np.float64, soft=soft, reduction="none", options={}
    )
    found = route.value(linear_stats_of, hidden, head, target, chunk=3)
    expected = route.value(stats_of, hidden @ head.T, target)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


SEVERAL = np.array([[0, 1, 4], [2, -100, 2], [-100, -100, -100], [3, 3, 0]])


def of_several(function, *arrays, **options):
    """Concatenate the fields with one column for each class, and those with one value for a row."""
    stats = function(*arrays, **options)
    xp = require("array", stats.loss).namespace(stats.loss)
    fields = stats.loss, stats.log_prob, xp.astype(stats.correct, stats.loss.dtype)
    rows = (stats.lse, stats.entropy, xp.astype(stats.prediction, stats.loss.dtype))
    return xp.concat([*fields, *(xp.expand_dims(field, axis=-1) for field in rows)], axis=-1)


def dense_several(*arrays, **options):
    return of_several(xentx.per_row, *arrays, **options)


def linear_several(*arrays, **options):
    return of_several(xentx.linear_per_row, *arrays, **options)


def test_several_classes_a_row(route):
    """The results are those of one class at a time. A row is ignored if all its targets are."""
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(4, 3)).astype("f"), rng.normal(size=(5, 3)).astype("f")
    logits = hidden @ head.T
    logits[2], hidden[2] = np.nan, np.nan
    columns = [
        xentx.per_row(logits, SEVERAL[:, i], temperature=1.5) for i in range(SEVERAL.shape[1])
    ]
    parts = [
        np.stack([getattr(c, f) for c in columns], -1) for f in ("loss", "log_prob", "correct")
    ]
    rows = [getattr(columns[0], f) for f in ("lse", "entropy", "prediction")]
    expected = np.concatenate([*parts, np.stack(rows, -1)], -1)
    found = route.value(dense_several, logits, SEVERAL, temperature=1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.signbit(found[2]).any()
    found = route.value(linear_several, hidden, head, SEVERAL, temperature=1.5, chunk=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_of_several_classes_a_row(route):
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(4, 3)).astype("f"), rng.normal(size=(5, 3)).astype("f")
    logits, seed = hidden @ head.T, np.zeros((4, 12), np.float32)
    seed[:, 3:6] = rng.normal(size=(4, 3))  # the cotangents of the log-probabilities
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    slope = np.zeros_like(logits)
    for row, column in np.argwhere(SEVERAL >= 0):
        slope[row, SEVERAL[row, column]] += seed[row, 3 + column]
        slope[row] -= seed[row, 3 + column] * p[row]
    _, found = route.pull(dense_several, logits, SEVERAL, cotangent=seed)
    np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6)
    _, found = route.pull(linear_several, hidden, head, SEVERAL, cotangent=seed, wrt=1, chunk=3)
    np.testing.assert_allclose(found, slope.T @ hidden, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "options", "error", "text"),
    [
        (
            np.zeros((2, 3), int),
            {},
            TypeError,
            r"target: got dtype int64 in shape \(2, 3\), the sh",
        ),
        (np.zeros((3, 2), int), {}, ValueError, r"target: got shape \(3, 2\) with dtype int64"),
        (np.zeros((2, 0), int), {}, ValueError, r"target: got shape \(2, 0\)"),
        ([[0, 1], [1, 3]], {}, IndexError, r"target: got 3 at position \(1, 1\); expected 0 <="),
        ([[0, 1], [1, 2]], {"z_loss": 0.1}, ValueError, "z_loss: got it with several classes"),
        ([[0, 1], [1, 2]], {"weight": np.ones(3)}, ValueError, "weight: got it with several"),
    ],
)
def test_errors_of_several_classes_a_row(target, options, error, text):
    for function, arrays in (
        (xentx.per_row, (np.zeros((2, 3)),)),
        (xentx.linear_per_row, (np.zeros((2, 4)), np.zeros((3, 4)))),
    ):
        with pytest.raises(error, match=text):
            function(*arrays, target, **options)


def predictions(logits, target, **options):
    """Classes of the largest logits, with the dtype of argmax."""
    stats = xentx.per_row(logits, target, **options)
    xp = require("logits", logits).namespace(logits)
    assert stats.prediction.dtype == xp.argmax(logits, axis=-1).dtype
    return stats.prediction


def corrects(logits, target):
    """Whether the predictions are the targets."""
    return xentx.per_row(logits, target).correct


NAN, INF = np.nan, np.inf
PREDICTIONS = {
    "largest": ([0.0, 3.0, 1.0, 2.0], 0, 1),
    "first of ties": ([1.0, 5.0, 5.0, 5.0], 3, 1),
    "ignored": ([0.0, 1.0, 2.0, 3.0], -100, 0),
    "ignored NaN": ([0.0, NAN, 2.0, 3.0], -100, 0),
    "first NaN": ([9.0, 0.0, NAN, NAN], 0, 2),
    "NaN beside infinity": ([0.0, INF, NAN, 1.0], 0, 2),
    "all NaN": ([NAN] * 4, 1, 0),
    "infinity": ([0.0, 1.0, INF, INF], 2, 2),
    "masked": ([-INF, -INF, -1.0, -INF], 0, 2),
    "all masked": ([-INF] * 4, 3, 0),
    "zeros": ([-1.0, -0.0, 0.0, -1.0], 3, 1),
}


@pytest.mark.parametrize("classes", [4, 300])
def test_predictions(route, classes):
    """In short and long rows. All classes but the last four have logits of -inf."""
    rows = np.full((len(PREDICTIONS), classes), -INF, np.float32)
    rows[:, -4:] = [row for row, _, _ in PREDICTIONS.values()]
    target = np.array([t if t < 0 else classes - 4 + t for _, t, _ in PREDICTIONS.values()])
    expected = np.array([p for _, _, p in PREDICTIONS.values()])
    shift = np.where((target < 0) | np.all(rows == -INF, 1), 0, classes - 4)
    np.testing.assert_array_equal(route.value(predictions, rows, target), expected + shift)
    correct = route.value(corrects, rows, target)
    np.testing.assert_array_equal(correct, (expected + shift == target) & (target >= 0))


@pytest.mark.parametrize("field", ["loss", "lse", "log_prob", "entropy"])
def test_gradients(route, field):
    """Gradients against finite differences of true values. `correct` has no gradient."""
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    rng = np.random.default_rng(RNG_SEED)
    logits, target = rng.normal(size=(3, 4)), np.array([1, 0, 3])
    cotangent = rng.normal(size=3)
    _, gradient = route.pull(FIELDS[field], logits, target, cotangent=cotangent)
    index = xentx.RowStats._fields.index(field)

    def value(x):
        stats = xentx.per_row(x, target)
        return float((stats[index] * cotangent).sum())

    step, expected = 1e-6, np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        shift = np.zeros_like(logits)
        shift[at] = step
        expected[at] = (value(logits + shift) - value(logits - shift)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


FIELDS = {
    name: lambda logits, target, name=name: getattr(xentx.per_row(logits, target), name)
    for name in ("loss", "lse", "log_prob", "entropy")
}


def block_from(logits, target, start):
    """Loss from two blocks: the first class, and the other classes from `start` on."""
    earlier = xentx.partials(logits[:, :1], target, classes=4)
    later = xentx.partials(logits[:, 1:], target, classes=4, start=start)
    return xentx.finish(xentx.combine(earlier, later))


def test_start_of_a_block_as_an_array(route):
    """`start` can be a traced array: each device computes it from its own index."""
    logits = np.random.default_rng(RNG_SEED).normal(size=(5, 4)).astype(np.float32)
    target = np.array([0, 3, 1, -100, 2], np.int32)
    found = route.value(block_from, logits, target, np.array(1, np.int32))
    whole = route.value(xentx.cross_entropy, logits, target, reduction="none")
    np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_any_split_gives_the_dense_loss(route):
    """Any split is within 1 ULP of the dense result, which is computed exactly."""
    if route.traced:
        pytest.skip("would compile for each split")

    @settings(max_examples=15 if route.compiles else 60)
    @given(st.data())
    def run(data):
        check_any_split(route, data)

    run()


def check_any_split(route, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    classes = data.draw(st.integers(1, 9))
    options = data.draw(st.sampled_from(list(ROW_OPTIONS.values())))
    soft = data.draw(st.booleans())
    logits, target, options, _ = draw_problem(
        rng, (5, classes), 1, np.float32, soft=soft, reduction="none", options=options
    )
    for unused in ("sample_weight", "reduction", "axis"):
        options.pop(unused, None)
    if data.draw(st.booleans()):
        logits = np.round(logits)  # with ties
    cuts = sorted(
        data.draw(st.sets(st.integers(1, classes - 1), max_size=4)) if classes > 1 else ()
    )
    order = data.draw(st.integers(0, 5))
    found = route.value(split_loss, logits, target, cuts=tuple(cuts), order=order, **options)
    exact = xentx.cross_entropy(logits, target, reduction="none", precision="exact", **options)
    # JAX without float64 sums in float32.
    allowed = 1 if found.dtype == np.float64 else 6
    scale = np.abs(exact) + (8 if "logit_softcap" in options and allowed > 1 else 0)
    difference = np.abs(found.astype(np.float32).astype(np.float64) - exact)
    assert np.all(difference <= allowed * np.maximum(np.spacing(np.abs(scale)), 1e-30))


def test_gradient_through_a_split(route):
    if "float64" not in route.dtypes:
        pytest.skip(f"{route} has no float64")
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    rng = np.random.default_rng(RNG_SEED)
    logits, target = rng.normal(size=(4, 6)), np.array([0, 5, 2, -100])
    logits[0] = 1.0  # all tied
    logits[1, 2:4] = -np.inf  # a block without finite logits
    cotangent = rng.normal(size=4)
    options = {"cuts": (2, 4), "order": 1, "z_loss": 0.1}
    value, gradient = route.pull(split_loss, logits, target, cotangent=cotangent, **options)
    expected = xentx.value_and_grad(xentx.cross_entropy)(
        logits, target, reduction="none", z_loss=0.1, cotangent=cotangent
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("row", "target", "expected"),
    [
        ([-np.inf, -np.inf, 1.0, -np.inf], 2, 0.0),
        ([-np.inf, -np.inf, 1.0, 2.0], 0, np.inf),
        ([-np.inf] * 4, 0, np.nan),
        ([0.0, np.inf, 0.0, 0.0], 0, np.nan),
        ([0.0, np.nan, 0.0, 0.0], 3, np.nan),
        ([np.nan] * 4, -100, 0.0),
    ],
    ids=["masked", "masked target", "all masked", "inf", "nan", "ignored"],
)
def test_corners_of_a_split(route, row, target, expected):
    found = route.value(
        split_loss, np.array([row], np.float32), np.array([target]), cuts=(2,), order=0
    )
    np.testing.assert_array_equal(found, [expected])


def micro_batches(logits, target, **options):
    """Mean over two micro-batches, from sums and normalizers."""
    sums, counts = zip(
        *(
            xentx.cross_entropy(x, t, reduction="sum", return_normalizer=True, **options)
            for x, t in ((logits[:2, :], target[:2]), (logits[2:, :], target[2:]))
        ),
        strict=True,
    )
    return stacked([sums[0] + sums[1], counts[0] + counts[1]])


@pytest.mark.parametrize("name", ["plain", "weight", "ignore", "smoothing, weight, ignore"])
def test_normalizer_of_micro_batches(route, name):
    rng = np.random.default_rng(RNG_SEED)
    logits, target, options, _ = draw_problem(
        rng, (6, 5), 1, np.float64, soft=False, reduction="mean", options=OPTIONS[name]
    )
    whole = route.value(xentx.cross_entropy, logits, target, **options)
    del options["reduction"]
    total, count = route.value(micro_batches, logits, target, **options)
    np.testing.assert_allclose(total / count, whole, rtol=1e-12)


def linear_normalizer(hidden, head, target, **options):
    """Value and normalizer of `linear_cross_entropy`."""
    return stacked(
        xentx.linear_cross_entropy(hidden, head, target, return_normalizer=True, **options)
    )


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_linear_normalizer(route, soft, reduction):
    if "float64" not in route.dtypes:
        pytest.skip(f"{route} has no float64")
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    _, target, options, _ = draw_problem(
        rng, (7, 5), 1, np.float64, soft=soft, reduction=reduction, options=OPTIONS["everything"]
    )
    del options["axis"]
    found = route.value(linear_normalizer, hidden, head, target, **options)
    expected = xentx.cross_entropy(hidden @ head.T, target, return_normalizer=True, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_value_and_grad_with_normalizer():
    logits, target = np.zeros((3, 4)), [0, 1, -100]
    function = xentx.value_and_grad(xentx.cross_entropy)
    (value, count), gradient = function(logits, target, return_normalizer=True)
    assert (round(float(value), 6), float(count), gradient.shape) == (1.386294, 2.0, (3, 4))
