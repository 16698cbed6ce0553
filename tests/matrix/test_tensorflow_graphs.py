"""TensorFlow graphs: sizes that are unknown during tracing, tapes, saved models."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import xentx

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 3)).astype(np.float32)
TARGET = np.array([0, 2, 1, 2], np.int32)
WEIGHT = np.array([1.0, 2.0, 0.5], np.float32)


@pytest.fixture
def tf(frameworks):
    if "tensorflow" not in frameworks:
        pytest.skip("not requested")
    return pytest.importorskip("tensorflow")


def traced(tf, function, *shapes, dtypes=("float32", "int32"), **options):
    """Compile for arrays of these shapes. Unknown sizes are None."""
    signature = [tf.TensorSpec(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return tf.function(function, input_signature=signature, **options)


def in_batch(tf, function, **options):
    """Value and gradient of a loss whose classes are the rows of the second factor."""

    def run(u, v):
        with tf.GradientTape() as tape:
            tape.watch(u)
            logits = u @ tf.transpose(v)
            value = function(logits, tf.range(tf.shape(u)[0]), **options)
        return value, tape.gradient(value, u)

    return run


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize(
    ("function", "options"),
    [
        (xentx.cross_entropy, {}),
        (xentx.cross_entropy, {"reduction": "none", "ignore_index": 1}),
        (xentx.cross_entropy, {"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 3.0}),
        (xentx.cross_entropy, {"reduction": "weighted_mean", "label_smoothing": 0.1}),
        (xentx.nll_loss, {}),
        (lambda x, t: xentx.per_row(x, t).entropy, {}),
        (lambda x, _: xentx.log_softmax(x), {}),
    ],
    ids=["mean", "none", "options", "weighted mean", "nll_loss", "per_row", "log_softmax"],
)
def test_an_unknown_number_of_classes(tf, function, options, jit_compile):
    """In-batch negatives: the number of classes is the number of rows."""
    u, v = (tf.constant(RNG.normal(size=(4, 3)).astype(np.float32)) for _ in range(2))
    run = in_batch(tf, function, **options)
    shapes = ((None, 3), (None, 3))
    compiled = traced(
        tf, run, *shapes, dtypes=("float32", "float32"), jit_compile=jit_compile, autograph=False
    )
    for found, expected in zip(compiled(u, v), run(u, v), strict=True):
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-7)


def test_weights_of_an_unknown_number_of_classes(tf):
    def run(logits, target, weight):
        return xentx.cross_entropy(logits, target, weight=weight, label_smoothing=0.1)

    shapes, dtypes = ((None, None), (None,), (None,)), ("float32", "int32", "float32")
    found = traced(tf, run, *shapes, dtypes=dtypes)(LOGITS, TARGET, WEIGHT)
    np.testing.assert_allclose(found, run(LOGITS, TARGET, WEIGHT), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "target", "name"),
    [(None, (None,), "logits"), ((None, 3), None, "target")],
    ids=["logits", "target"],
)
def test_an_unknown_rank_is_an_error(tf, logits, target, name):
    with pytest.raises(ValueError, match=f"{name}: got a tensor of unknown rank; expected"):
        traced(tf, xentx.cross_entropy, logits, target)(LOGITS, TARGET)


LOSSES = {
    "cross_entropy": xentx.cross_entropy,
    "nll_loss": xentx.nll_loss,
    "per_row": lambda x, t: xentx.per_row(x, t).loss,
    "linear": lambda x, t: xentx.linear_cross_entropy(x, np.ones((5, 3), np.float32), t),
}


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
def test_a_size_that_is_wrong_at_run_time_is_named(tf, function):
    compiled = traced(tf, function, (None, 3), (None,), autograph=False)
    assert np.all(np.isfinite(compiled(LOGITS, TARGET)))
    words = r"target: got shape\] \[2\] \[; expected\] \[4\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        compiled(LOGITS, TARGET[:2])


@pytest.mark.parametrize("name", ["weight", "sample_weight"])
def test_a_weight_with_a_wrong_size_at_run_time_is_named(tf, name):
    def run(logits, weight):
        return xentx.cross_entropy(logits, TARGET, **{name: weight})

    compiled = traced(tf, run, (None, 3), (None,), dtypes=("float32", "float32"))
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{name}: got shape\] \[2\]"):
        compiled(LOGITS, WEIGHT[:2])


@pytest.mark.parametrize("function", [xentx.linear_cross_entropy, xentx.linear_per_row])
@pytest.mark.parametrize(
    ("hidden", "head", "words"),
    [
        ((None, 3), (None, 3), "head: got shape .* with an unknown number of classes on axis 0"),
        ((None, 3), (5, None), "head: got shape .* with an unknown number of features on axis 1"),
        ((4, None), (5, 3), "hidden: got shape .* with an unknown number of features on axis 1"),
    ],
    ids=["classes", "features of head", "features of hidden"],
)
def test_sizes_that_linear_losses_need(tf, function, hidden, head, words):
    def run(x, w):
        return function(x, w, TARGET)

    with pytest.raises(ValueError, match=words):
        traced(tf, run, hidden, head, dtypes=("float32", "float32"))(LOGITS, np.ones((5, 3), "f"))


@pytest.fixture
def logged(tf):
    """Messages that TensorFlow and absl log."""
    records = []

    class Handler(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Handler()
    loggers = [tf.get_logger(), logging.getLogger("absl")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_nested_tapes_with_class_indices_log_nothing(tf, logged):
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as outer:
        outer.watch(logits)
        with tf.GradientTape() as inner:
            inner.watch(logits)
            value = xentx.cross_entropy(logits, TARGET)
        gradient = inner.gradient(value, logits)
    assert outer.gradient(gradient, logits).shape == logits.shape
    assert logged == []


SAVED = """
import sys
import numpy as np
import tensorflow as tf
import xentx

def loss(x, t):
    return xentx.cross_entropy(x, t, label_smoothing=0.1)

def second(function, x, t):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = function(x, t)
        slope = tf.reduce_sum(inner.gradient(value, x) ** 2)
    return outer.gradient(slope, x)

module = tf.Module()
signature = [tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int32)]
module.loss = tf.function(loss, input_signature=signature)
tf.saved_model.save(module, sys.argv[1])
loaded = tf.saved_model.load(sys.argv[1])
x, t = tf.random.stateless_normal((4, 3), (1, 2)), tf.constant([0, 2, 1, 2])
expected = second(loss, x, t)
np.testing.assert_allclose(second(loaded.loss, x, t), expected, rtol=1e-5, atol=1e-8)
"""


def test_a_saved_model_of_the_portable_core_has_any_derivative(tf, tmp_path):
    env = {**os.environ, "XENTX_ENGINE": "portable"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SAVED, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "custom gradients" not in done.stderr
