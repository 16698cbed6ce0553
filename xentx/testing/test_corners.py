"""Special cases: infinities, NaN, empty arrays, and targets out of range.

Each case has the expected value and gradient, which are the same in every framework, eager and
traced.
"""

import math

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle

INF, NAN = math.inf, math.nan
B = [[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]]
ZEROS = [0.0, 0.0, 0.0]

# Losses and gradients of the two rows of B, for the expected values below.
LOSS_0, LOSS_1 = 0.46436878, 0.31677871
GRAD_0 = [0.23122390, -0.37146830, 0.14024440]
GRAD_1 = [0.10896040, 0.16254870, -0.27150910]
HALF = [0.26894142, -0.26894142]


def corner(logits, target, value, gradient, **options):
    """Describe a special case. The default reduction is "none"."""
    return logits, target, {"reduction": "none", **options}, value, gradient


HARD = {
    "ignored row": corner(B, [1, -100], [LOSS_0, 0.0], [GRAD_0, ZEROS]),
    "ignored row of NaN": corner(
        [B[0], [NAN, INF, 0.0]], [1, -100], [LOSS_0, 0.0], [GRAD_0, ZEROS]
    ),
    "ignored row of -inf": corner([B[0], [-INF] * 3], [1, -100], [LOSS_0, 0.0], [GRAD_0, ZEROS]),
    "ignored class in range": corner(B, [1, 2], [LOSS_0, 0.0], [GRAD_0, ZEROS], ignore_index=2),
    "ignored, mean": corner(B, [1, -100], LOSS_0, [GRAD_0, ZEROS], reduction="mean"),
    "ignored with smoothing": corner(
        B, [-100, 2], 0.4301121, None, reduction="mean", label_smoothing=0.1
    ),
    "all ignored, mean": corner(B, [-100, -100], NAN, [ZEROS, ZEROS], reduction="mean"),
    "all ignored, sum": corner(B, [-100, -100], 0.0, [ZEROS, ZEROS], reduction="sum"),
    "weights sum to 0": corner(
        B, [1, 2], NAN, [ZEROS, ZEROS], reduction="mean", weight=[1.0, 0.0, 0.0]
    ),
    "weights cancel": corner(
        B, [1, 2], NAN, [ZEROS, ZEROS], reduction="mean", weight=[0.0, -1.0, 1.0]
    ),
    "sample weights sum to 0": corner(
        B, [1, 2], NAN, [ZEROS, ZEROS], reduction="mean", sample_weight=[0.0, 0.0]
    ),
    "no rows, none": corner(np.zeros((0, 3)), [], [], np.zeros((0, 3))),
    "no rows, sum": corner(np.zeros((0, 3)), [], 0.0, np.zeros((0, 3)), reduction="sum"),
    "no rows, mean": corner(np.zeros((0, 3)), [], NAN, np.zeros((0, 3)), reduction="mean"),
    "one class": corner([[3.0], [-2.0]], [0, 0], [0.0, 0.0], [[0.0], [0.0]]),
    "-inf elsewhere": corner([[1.0, 2.0, -INF]], [1], [0.31326169], [[*HALF, 0.0]]),
    "-inf at the target": corner([[1.0, 2.0, -INF]], [2], [INF], [[0.26894142, 0.73105858, -1.0]]),
    "-inf at a target of weight 0": corner(
        [[1.0, 2.0, -INF]], [2], [0.0], [ZEROS], weight=[1.0, 1.0, 0.0]
    ),
    "-inf under smoothing": corner([[1.0, 2.0, -INF]], [1], [INF], None, label_smoothing=0.1),
    "-inf under smoothing of weight 0": corner(
        [[1.0, 2.0, -INF]],
        [1],
        [0.31326169 * (0.9 + 0.1 / 3) + 1.31326169 * 0.1 / 3],
        None,
        label_smoothing=0.1,
        weight=[1.0, 1.0, 0.0],
    ),
    "row of -inf": corner([[-INF] * 3, B[1]], [0, 2], [NAN, LOSS_1], [[NAN] * 3, GRAD_1]),
    "+inf elsewhere": corner([[1.0, INF, 0.0], B[1]], [0, 2], [NAN, LOSS_1], [[NAN] * 3, GRAD_1]),
    "+inf at the target": corner(
        [[1.0, INF, 0.0], B[1]], [1, 2], [NAN, LOSS_1], [[NAN] * 3, GRAD_1]
    ),
    "NaN": corner([[1.0, NAN, 0.0], B[1]], [0, 2], [NAN, LOSS_1], [[NAN] * 3, GRAD_1]),
    "NaN weight of no target": corner(
        B, [1, 2], [LOSS_0, LOSS_1], [GRAD_0, GRAD_1], weight=[NAN, 1.0, 1.0]
    ),
    "gap of 1e30": corner([[1e30, 0.0]] * 2, [0, 1], [0.0, 1e30], [[0.0, 0.0], [1.0, -1.0]]),
    "gap beyond the dtype": corner(
        [[3e38, -3e38]] * 2, [0, 1], [0.0, INF], [[0.0, 0.0], [1.0, -1.0]]
    ),
    "huge and equal": corner(
        [[3e38, 3e38], [-1e30, -1e30]], [0, 0], [math.log(2)] * 2, [[-0.5, 0.5]] * 2
    ),
    "offset of 1e4": corner([[10001.0, 10002.0, 10000.5]], [1], [LOSS_0], [GRAD_0]),
    "weighted": corner(B, [1, 2], [0.9287376, 0.9503362], None, weight=[1.0, 2.0, 3.0]),
    "weighted mean of targets": corner(
        B, [1, 2], 0.3758147, None, weight=[1.0, 2.0, 3.0], reduction="mean"
    ),
    "weighted, smoothed": corner(
        B, [1, 2], [1.112071, 1.081992], None, weight=[1.0, 2.0, 3.0], label_smoothing=0.1
    ),
    "weighted, smoothed, mean": corner(
        B, [1, 2], 0.4388125, None, weight=[1.0, 2.0, 3.0], label_smoothing=0.1, reduction="mean"
    ),
    "sample weights": corner(
        B,
        [1, 2],
        (LOSS_0 + 3 * LOSS_1) / 4,
        None,
        sample_weight=[1.0, 3.0],
        reduction="mean",
    ),
    "sample weight of 0 at +inf": corner(
        [[1.0, -INF], [1.0, 2.0]], [1, 1], [0.0, 0.31326169], None, sample_weight=[0.0, 1.0]
    ),
    "normalizer": corner(B, [1, 2], (LOSS_0 + LOSS_1) / 10, None, normalizer=10, reduction="mean"),
    "normalizer of 0": corner(B, [1, 2], NAN, [ZEROS, ZEROS], normalizer=0, reduction="mean"),
}
SOFT = {
    "0 * -inf": corner(
        [[1.0, 2.0, -INF]], [[0.25, 0.75, 0.0]], [0.5632617], [[0.01894142, -0.01894142, 0.0]]
    ),
    "-inf with a share": corner([[1.0, 2.0, -INF]], [[0.25, 0.5, 0.25]], [INF], None),
    "sums to 2": corner([B[0]], [[0.0, 2.0, 0.0]], [2 * LOSS_0], [[2 * g for g in GRAD_0]]),
    "sums to 0": corner([B[0]], [[0.0, 0.0, 0.0]], [0.0], [ZEROS]),
    "negative share": corner([B[0]], [[-1.0, 2.0, 0.0]], [2 * LOSS_0 - 1.46436878], None),
    "NaN share": corner([B[0]], [[NAN, 1.0, 0.0]], [NAN], [[NAN] * 3]),
    "row of -inf": corner([[-INF] * 3], [[0.0, 1.0, 0.0]], [NAN], [[NAN] * 3]),
    "one class": corner([[3.0]], [[0.5]], [0.0], [[0.0]]),
    "one-hot, weighted, mean": corner(
        B,
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        0.9395369,
        None,
        weight=[1.0, 2.0, 3.0],
        reduction="mean",
    ),
    "one-hot, weighted, weighted_mean": corner(
        B,
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        0.3758147,
        None,
        weight=[1.0, 2.0, 3.0],
        reduction="weighted_mean",
    ),
    "weighted": corner(
        B,
        [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]],
        [2.525175, 1.345303],
        None,
        weight=[1.0, 2.0, 3.0],
    ),
    "one-hot, weighted, smoothed, mean": corner(
        B,
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        1.097031,
        None,
        weight=[1.0, 2.0, 3.0],
        label_smoothing=0.1,
        reduction="mean",
    ),
    "no rows, mean": corner(
        np.zeros((0, 3)), np.zeros((0, 3)), NAN, np.zeros((0, 3)), reduction="mean"
    ),
}


def check(route, logits, target, options, value, gradient):
    arrays = {
        key: np.asarray(option, np.float32) if isinstance(option, list) else option
        for key, option in options.items()
    }
    got = route.pull(xentx.cross_entropy, np.asarray(logits, np.float32), target, **arrays)
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    # A loss of 0 is +0, not -0.
    assert not np.any((got[0] == 0) & np.signbit(got[0]))
    if gradient is not None:
        assert got[1].shape == np.shape(logits)
        np.testing.assert_allclose(got[1], gradient, rtol=1e-5, atol=1e-8)
        exact = np.asarray(gradient) == 0
        assert np.all(got[1][exact] == 0)


@pytest.mark.parametrize("case", HARD.values(), ids=HARD)
def test_hard(route, case):
    logits, target, *rest = case
    check(route, logits, np.asarray(target, np.int32), *rest)


@pytest.mark.parametrize("case", SOFT.values(), ids=SOFT)
def test_soft(route, case):
    logits, target, *rest = case
    check(route, logits, np.asarray(target, np.float32), *rest)


@pytest.mark.parametrize("bad", [3, -1, -4, 100])
@pytest.mark.parametrize("options", [{}, {"weight": [1.0, 2.0, 3.0]}, {"label_smoothing": 0.1}])
def test_target_out_of_range(route, bad, options):
    """An error if the target is concrete. If it is traced, only its row is NaN."""
    logits, target = np.asarray(B, np.float32), np.array([bad, 2], np.int32)
    options = {
        key: np.asarray(option, np.float32) if isinstance(option, list) else option
        for key, option in options.items()
    }
    if route.traced:
        value, gradient = route.pull(
            xentx.cross_entropy, logits, target, reduction="none", **options
        )
        assert np.isnan(value[0])
        assert np.isfinite(value[1])
        assert np.all(np.isnan(gradient[0]))
        assert np.all(np.isfinite(gradient[1]))
    else:
        with pytest.raises(IndexError, match=rf"target: got {bad} at position 0; expected 0 <= "):
            route.value(xentx.cross_entropy, logits, target, **options)


def test_traced_target_out_of_range_in_nll_loss(route):
    if not route.traced:
        pytest.skip(f"{route} raises an error for a concrete target")
    log_probs, target = np.asarray(B, np.float32), np.array([3, 2], np.int32)
    value, gradient = route.pull(xentx.nll_loss, log_probs, target, reduction="none")
    np.testing.assert_array_equal(value, np.float32([NAN, -2.0]))
    np.testing.assert_array_equal(gradient, np.float32([[NAN] * 3, [0, 0, -1]]))


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64],
)
def test_every_integer_dtype(route, dtype):
    value = route.value(
        xentx.cross_entropy, np.asarray(B, np.float32), np.array([1, 2], dtype), reduction="none"
    )
    np.testing.assert_allclose(value, [LOSS_0, LOSS_1], rtol=1e-6)


def test_ignore_index_beyond_the_classes(route):
    """Segmentation masks use 255 in uint8."""
    target = np.array([1, 255], np.uint8)
    value, gradient = route.pull(
        xentx.cross_entropy, np.asarray(B, np.float32), target, ignore_index=255
    )
    np.testing.assert_allclose(value, LOSS_0, rtol=1e-6)
    np.testing.assert_allclose(gradient, [GRAD_0, ZEROS], rtol=1e-5)


INT_MIN = [np.iinfo(np.int32).min, np.iinfo(np.int64).min]


@pytest.mark.parametrize("bad", [-100, -1, 3, *INT_MIN])
@pytest.mark.parametrize("function", [xentx.cross_entropy, xentx.nll_loss])
def test_ignore_index_none(route, function, bad):
    """With ``ignore_index=None`` every index out of range is an error, or NaN if traced."""
    logits = np.asarray(B, np.float32)
    dtype = np.int64 if bad < INT_MIN[0] else np.int32
    if dtype == np.int64:
        logits = logits.astype(np.float64)  # JAX has int64 only together with float64
    target = np.array([bad, 2], dtype)
    options = {"ignore_index": None, "reduction": "none"}
    fine = route.value(function, logits, np.array([1, 2], dtype), **options)
    assert np.all(np.isfinite(fine))
    if route.traced:
        value, gradient = route.pull(function, logits, target, **options)
        np.testing.assert_array_equal(np.isnan(value), [True, False])
        np.testing.assert_array_equal(np.isnan(gradient), [[True] * 3, [False] * 3])
    else:
        with pytest.raises(IndexError, match=rf"target: got {bad} at position 0; .* target < 3$"):
            route.value(function, logits, target, **options)


def test_ignore_index_none_in_linear_cross_entropy(route):
    hidden, head = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    target = np.array([-100, 2], np.int32)
    options = {"ignore_index": None, "reduction": "none"}
    if route.traced:
        value = route.value(xentx.linear_cross_entropy, hidden, head, target, **options)
        np.testing.assert_array_equal(np.isnan(value), [True, False])
    else:
        with pytest.raises(IndexError, match=r"target: got -100 at position 0; .* target < 4$"):
            route.value(xentx.linear_cross_entropy, hidden, head, target, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_mean_over_many_rows(route, dtype):
    """20,000 rows with losses near 5: their float16 sum would overflow, but the mean must not."""
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    dtype = oracle.DTYPES[dtype]
    logits = np.zeros((20_000, 162), dtype)
    target = np.zeros(20_000, np.int32)
    value, gradient = route.pull(xentx.cross_entropy, logits, target)
    assert value == np.asarray(math.log(162)).astype(dtype)
    assert np.all(np.isfinite(gradient.astype(np.float32)))


def test_narrow_sum_over_many_classes(route):
    """The loss of 70,000 equal classes. The sum of exponentials would overflow in float16."""
    if "float16" not in route.dtypes:
        pytest.skip(f"{route} has no float16")
    logits = np.zeros((1, 70_000), np.float16)
    value = route.value(xentx.cross_entropy, logits, np.array([0], np.int32))
    assert value == np.float16(math.log(70_000))


def test_sum_is_wide(route):
    """Two large losses cancel.

    The small losses between them are below half an ULP of the large ones.
    """
    logits = np.zeros((10_002, 2), np.float32)
    logits[1:-1, 0] = 4.0
    logits[[0, -1], 1] = 2.0**24
    sample_weight = np.ones(10_002, np.float32)
    sample_weight[-1] = -1.0
    value = route.value(
        xentx.cross_entropy,
        logits,
        np.zeros(10_002, np.int32),
        sample_weight=sample_weight,
        reduction="sum",
    )
    np.testing.assert_allclose(value, 10_000 * math.log1p(math.exp(-4.0)), rtol=1e-6)


def test_weighted_mean_with_smoothing(route):
    """With weights and smoothing, a mean over hard targets divides by the unsmoothed weights."""
    value = route.value(
        xentx.cross_entropy,
        np.asarray(B, np.float32),
        np.array([1, 2]),
        weight=np.array([1, 2, 3]),
        label_smoothing=0.1,
    )
    np.testing.assert_allclose(value, (1.112071 + 1.081992) / 5, rtol=1e-6)
