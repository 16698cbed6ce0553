"""`xentx.nll_loss` reads only the log-probability of the target class of each row."""

import math

import numpy as np
import pytest

import xentx
from xentx.testing import _oracle as oracle

INF, NAN = math.inf, math.nan
LOG_PROBS = np.array([[-1.5, -0.5, -2.0], [-2.25, -1.75, -0.25]], np.float32)
WEIGHT = np.array([1.0, 2.0, 4.0], np.float32)


def pulled(route, log_probs, target, **options):
    """Compute the loss of each row, and the gradient of their sum."""
    return route.pull(xentx.nll_loss, log_probs, target, reduction="none", **options)


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64],
)
def test_every_integer_dtype(route, dtype):
    value, gradient = pulled(route, LOG_PROBS, np.array([1, 2], dtype), weight=WEIGHT)
    np.testing.assert_array_equal(value, [1.0, 1.0])
    np.testing.assert_array_equal(gradient, [[0, -2, 0], [0, 0, -4]])


@pytest.mark.parametrize(
    ("index", "dtype"), [(-100, np.int64), (-1, np.int8), (0, np.int32), (255, np.uint8)]
)
def test_ignored_row(route, index, dtype):
    """The loss is 0 for any log-probabilities, also if `ignore_index` is the index of a class."""
    log_probs = LOG_PROBS.copy()
    log_probs[0] = NAN
    weight = WEIGHT.copy()
    weight[0] = NAN if index == 0 else 1
    target, options = np.array([index, 2], dtype), {"ignore_index": index, "weight": weight}
    value, gradient = pulled(route, log_probs, target, **options)
    np.testing.assert_array_equal(value, [0.0, 1.0])
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0, 0, -4]])
    mean, gradient = route.pull(xentx.nll_loss, log_probs, target, **options)
    assert mean == 0.25
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0, 0, -1]])


def test_no_other_class_is_read(route):
    log_probs = np.array([[NAN, -0.5, -INF], [INF, NAN, -0.25]], np.float32)
    value, gradient = pulled(route, log_probs, np.array([1, 2], np.int32))
    np.testing.assert_array_equal(value, [0.5, 0.25])
    np.testing.assert_array_equal(gradient, [[0, -1, 0], [0, 0, -1]])


@pytest.mark.parametrize(("entry", "loss"), [(-INF, INF), (NAN, NAN), (0.0, 0.0)])
def test_entry_of_the_class(route, entry, loss):
    log_probs = np.array([[-0.5, entry]], np.float32)
    value, gradient = pulled(route, log_probs, np.array([1], np.int32))
    np.testing.assert_array_equal(value, [loss])
    assert math.copysign(1.0, value[0]) == 1.0 or math.isnan(loss)
    np.testing.assert_array_equal(gradient, [[0, -1]])


def test_class_without_weight(route):
    """0 times infinity is 0."""
    log_probs = np.array([[-0.5, -INF]], np.float32)
    value, gradient = pulled(
        route, log_probs, np.array([1], np.int32), weight=np.array([1.0, 0.0], np.float32)
    )
    np.testing.assert_array_equal(value, [0.0])
    np.testing.assert_array_equal(gradient, [[0, 0]])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_axis(route, axis, dtype):
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(0)
    rows = rng.integers(-9, 0, (2, 4, 5)).astype(np.float32)
    target = rng.integers(0, 5, (2, 4))
    log_probs = np.moveaxis(rows, -1, axis).astype(oracle.DTYPES[dtype])
    target[0, 1] = -100
    value, gradient = pulled(route, log_probs, target, axis=axis)
    assert value.dtype == gradient.dtype == log_probs.dtype
    one_hot = np.float32(target[..., None] == np.arange(5))
    np.testing.assert_array_equal(value.astype(np.float32), -(rows * one_hot).sum(-1))
    one_hot = np.moveaxis(one_hot, -1, axis)
    np.testing.assert_array_equal(gradient.astype(np.float32), -one_hot)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(("reduction", "expected"), [("none", None), ("sum", 0.0), ("mean", NAN)])
def test_no_rows(route, reduction, expected, weight):
    log_probs, target = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    options = {"reduction": reduction} | ({} if weight is None else {"weight": weight})
    value, gradient = route.pull(xentx.nll_loss, log_probs, target, **options)
    assert gradient.shape == (0, 3)
    if expected is None:
        assert value.shape == (0,)
    else:
        np.testing.assert_array_equal(value, np.float32(expected))


def test_one_class(route):
    log_probs = np.array([[-0.5], [-2.0]], np.float32)
    value, gradient = pulled(route, log_probs, np.array([0, -100], np.int64))
    np.testing.assert_array_equal(value, [0.5, 0.0])
    np.testing.assert_array_equal(gradient, [[-1], [0]])


def test_one_row(route):
    """Log-probabilities with one dimension, and a target with none."""
    value, gradient = pulled(route, LOG_PROBS[0], np.array(1))
    assert value.shape == ()
    assert value == 0.5
    np.testing.assert_array_equal(gradient, [0, -1, 0])


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
def test_gradient_by_the_weights(route, reduction):
    """The losses and the divisor of a mean depend on the weights."""
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    target = np.array([1, 2, 1, -100], np.int64)
    log_probs = np.concatenate([LOG_PROBS, LOG_PROBS])
    losses = -log_probs[[0, 1, 2], target[:3]].astype(np.float64)
    w = WEIGHT[target[:3]].astype(np.float64)
    value, total = (w * losses).sum(), w.sum()
    by_row = losses if reduction == "sum" else (losses - value / total) / total
    expected = np.zeros(3)
    np.add.at(expected, target[:3], by_row)

    _, gradient = route.pull(
        xentx.nll_loss, log_probs, target, weight=WEIGHT, reduction=reduction, wrt="weight"
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_mean_of_class_probabilities(route, axis, reduction):
    rng = np.random.default_rng(0)
    rows = rng.integers(-9, 0, (2, 4, 5)).astype(np.float32)
    target = rng.integers(0, 3, (2, 4, 5)).astype(np.float32)
    log_probs, q = (np.moveaxis(a, -1, axis) for a in (rows, target))
    value, gradient = route.pull(xentx.nll_loss, log_probs, q, axis=axis, reduction=reduction)
    divisor = 8 if reduction == "mean" else target.sum()
    np.testing.assert_allclose(value, -(rows * target).sum() / divisor, rtol=1e-6)
    np.testing.assert_allclose(gradient, -q / divisor, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_a_class_with_target_probability_0(route, dtype, weighted):
    """0 times infinity is 0, and 0 times NaN is NaN."""
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    log_probs = np.array([[-np.inf, -1], [np.inf, -1], [np.nan, -1]], oracle.DTYPES[dtype])
    target = np.array([[0, 1]] * 3, oracle.DTYPES[dtype])
    weight = np.ones(2, np.float64 if dtype == "float64" else np.float32)
    options = {"weight": weight} if weighted else {}
    value = route.value(xentx.nll_loss, log_probs, target, reduction="none", **options)
    np.testing.assert_array_equal(value, np.array([1, 1, np.nan], value.dtype))
