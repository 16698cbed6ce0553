"""Tests of the TensorFlow namespace that array-api-tests lacks: traced calls and special cases."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
xp = pytest.importorskip("xentx_tensorflow._namespace")

MODES = {
    "eager": lambda function, signature: function,
    "graph": tf.function,
    "xla": lambda function, signature: tf.function(function, signature, jit_compile=True),
}
in_each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("args", [(5,), (1, 6, 2), (6, 1, -2), (5, 1), (0.0, 1.0, 0.25)])
def test_arange_is_numpys(args):
    np.testing.assert_array_equal(xp.arange(*args), np.arange(*args))


def test_squeeze_of_no_axes():
    assert xp.squeeze(xp.ones((1, 2, 1)), ()).shape == (1, 2, 1)


@pytest.mark.parametrize(
    "pair", [(xp.int64, xp.uint64), (xp.int32, xp.float32), (xp.bool, xp.int8), (xp.int8, 1.5)]
)
def test_kinds_do_not_mix(pair):
    with pytest.raises(TypeError, match=r"no common dtype|cannot be an element"):
        xp.result_type(*pair)


@in_each_mode
@pytest.mark.parametrize("dtype", [xp.bfloat16, xp.float16, xp.float32, xp.float64], ids=str)
def test_nan_propagates(mode, dtype):
    a = tf.cast(tf.constant([[1.0, np.nan, 2.0], [np.nan, np.nan, np.nan], [1.0, 2.0, 3.0]]), dtype)

    def extremes(a):
        pairs = [f(x, y) for f in (xp.maximum, xp.minimum) for x, y in ((a, 1.5), (1.5, a))]
        return pairs, [f(a, axis=1) for f in (xp.max, xp.min)]

    pairs, rows = MODES[mode](extremes, None)(a)
    for pair in pairs:
        np.testing.assert_array_equal(xp.isnan(pair), xp.isnan(a))
    for row in rows:
        np.testing.assert_array_equal(xp.isnan(row), [True, True, False])


@in_each_mode
@pytest.mark.parametrize("dtype", [xp.bfloat16, xp.float16, xp.float32, xp.float64], ids=str)
def test_gradient_with_unknown_batch(mode, dtype):
    def softmax(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            top = xp.max(x, axis=-1, keepdims=True)
            total = xp.sum(xp.exp(xp.subtract(x, top)), axis=-1)
            is_first = xp.equal(xp.arange(x.shape[-1]), 0)
            first = xp.sum(xp.where(is_first, x, 0.0), axis=-1)
            lse = xp.add(xp.log(total), xp.squeeze(top, axis=-1))
            loss = xp.sum(xp.add(xp.zeros_like(lse), xp.subtract(lse, first)))
        return tape.gradient(loss, x)

    rows = tf.cast(tf.constant(np.random.default_rng(0).normal(size=(4, 3))), dtype)
    gradient = MODES[mode](softmax, [tf.TensorSpec((None, 3), dtype)])(rows)
    x = np.asarray(rows, np.float64)
    expected = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) - np.eye(1, 3)
    np.testing.assert_allclose(
        np.asarray(gradient, np.float64), expected, atol=4 * xp.finfo(dtype).eps
    )


@in_each_mode
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_differences_stay_error_free(mode, dtype):
    # Terms that would be 0 without rounding must not be simplified. tf.function would do this if
    # `m` were a literal.
    def two_diff(xp, m, x):
        gap = xp.subtract(m, x)
        back = xp.subtract(gap, m)
        return gap, xp.subtract(xp.subtract(m, xp.subtract(gap, back)), xp.add(x, back))

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(100, 1000)) * 10 ** rng.uniform(-6, 4, (100, 1000))).astype(dtype)
    m = x[:, :1]
    difference = MODES[mode](lambda m, x: two_diff(xp, m, x), None)
    for ours, numpys in zip(
        difference(xp.asarray(m), xp.asarray(x)), two_diff(np, m, x), strict=True
    ):
        np.testing.assert_array_equal(ours, numpys)


@in_each_mode
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", [xp.int8, xp.int32, xp.int64, xp.uint8], ids=str)
def test_along_an_axis(mode, axis, dtype):
    """Take and put with unknown sizes, and the gradient of take."""
    rng = np.random.default_rng(0)
    x, indices = rng.normal(size=(2, 3, 4)), rng.integers(0, 2, (2, 3, 4)).take([1], axis)
    if dtype in (xp.int8, xp.int32, xp.int64):
        indices = indices - 1

    def both(x, indices):
        with tf.GradientTape() as tape:
            tape.watch(x)
            picked = xp.take_along_axis(x, indices, axis=axis)
            loss = xp.sum(picked * picked)
        gradient = tape.gradient(loss, x)
        places = tf.math.floormod(tf.cast(indices, tf.int64), tf.shape(x, tf.int64)[axis])
        options = {"axis": axis % 3, "others": None}
        placed = xp.placed_along_axis(x, places, 2 * picked, **options)
        beside = xp.placed_along_axis(x, places, picked, **{**options, "others": 0 * picked + 1})
        return picked, gradient, placed, beside

    specs = [tf.TensorSpec((None, None, None), d) for d in (tf.float64, dtype)]
    picked, gradient, placed, beside = MODES[mode](both, specs)(
        tf.constant(x), tf.constant(indices, dtype)
    )
    expected = np.take_along_axis(x, indices, axis)
    np.testing.assert_array_equal(picked, expected)
    ones, zeros = np.ones(x.shape), np.zeros(x.shape)
    np.put_along_axis(ones, indices, expected, axis)
    np.put_along_axis(zeros, indices, 2 * expected, axis)
    np.testing.assert_array_equal(beside, ones)
    np.testing.assert_array_equal(placed, zeros)
    np.testing.assert_array_equal(gradient, zeros)
