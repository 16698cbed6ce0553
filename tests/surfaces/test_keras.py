"""xentx's losses in Keras, on each of its backends. Keras chooses one when it is imported."""

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from xentx.testing import requested_frameworks

if "tensorflow" not in requested_frameworks():
    pytest.skip("Keras comes with TensorFlow, which is not requested", allow_module_level=True)

import keras
from keras import ops

import xentx
import xentx_keras
from xentx_keras import CategoricalCrossentropy, SparseCategoricalCrossentropy

# Keras converts tensors of TensorFlow and PyTorch to NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, 2, (6, 4)).astype(np.float32)
TARGET = np.array([0, 3, 1, 2, 2, 1])
SOFT = RNG.dirichlet(np.ones(4), 6).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 2, 6).astype(np.float32)
PAIRS = [
    (SparseCategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy, TARGET),
    (CategoricalCrossentropy, keras.losses.CategoricalCrossentropy, SOFT),
]
NAMES = ["indices", "soft"]
REDUCTIONS = ["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", None]


def number(value):
    return ops.convert_to_numpy(value)


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_on_the_other_backends(backend):
    if BACKEND != "tensorflow":
        pytest.skip("runs in the process of another backend")
    needed = "jax" if backend == "numpy" else backend  # Keras's NumPy backend uses JAX
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", __file__, "-q", "-n0", "-p", "no:cacheprovider"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize(("ours", "native", "target"), PAIRS, ids=NAMES)
def test_drop_in(ours, native, target, from_logits, reduction):
    given = LOGITS if from_logits else np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    for weights in (None, WEIGHTS):
        values = [
            number(loss(from_logits=from_logits, reduction=reduction)(target, given, weights))
            for loss in (ours, native)
        ]
        np.testing.assert_allclose(*values, rtol=2e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_class(reduction):
    target = np.array([0, 255, 1, 2, 255, 1])
    values = [
        number(loss(True, 255, reduction)(target, LOGITS))
        for loss in (SparseCategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    ]
    np.testing.assert_allclose(*values, rtol=2e-6)


def test_nothing_is_ignored_by_default():
    """Keras has no default, so -100 is out of range. The default of xentx is -100."""
    loss = SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    with pytest.raises(IndexError, match="y_true: got -100"):
        loss(np.array([-100, 3, 1, 2, 2, 1]), LOGITS)


NO_CLASSES = [np.nan, np.inf, -np.inf, 4, 1.5, -1, -2, -100, -(2**31), 2**31, 2**32 + 1, 2.0**40]


@pytest.mark.parametrize("ignore_class", [None, 255, -1, -2, 2**33])
@pytest.mark.parametrize("label", NO_CLASSES)
def test_label_out_of_range(label, ignore_class):
    """The error names the label, and `ignore_class` only if it was given."""
    target = np.array([0, 3, label, 2, 2, 1])
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore_class)
    if label == ignore_class:
        assert np.isfinite(number(loss(target, LOGITS)))
        return
    shown = int(np.float32(label)) if np.isfinite(label) and label != 1.5 else label
    rest = "" if ignore_class is None else f", or ignore_class={ignore_class}"
    text = f"y_true: got {shown} at position 2; expected 0 <= y_true < 4{rest}"
    with pytest.raises(IndexError, match=f"^{re.escape(text)}$"):
        loss(target, LOGITS)


@pytest.mark.skipif(BACKEND in ("numpy", "torch"), reason="Keras does not trace with it")
@pytest.mark.parametrize("ignore_class", [None, 255, -1, -2, 2**33])
def test_traced_label_out_of_range(ignore_class):
    """Only its row is NaN."""
    loss = SparseCategoricalCrossentropy(True, ignore_class, reduction=None)
    labels = [label for label in NO_CLASSES if label != ignore_class]
    target = np.array([0, *labels], np.float32)
    logits = np.tile(LOGITS[:1], (len(target), 1))

    def rows(target, logits):
        return loss(target, logits)

    if BACKEND == "jax":
        import jax

        compiled = jax.jit(rows)
    else:
        import tensorflow as tf

        compiled = tf.function(rows)
    found = number(compiled(ops.convert_to_tensor(target), ops.convert_to_tensor(logits)))
    assert np.isfinite(found[0])
    assert np.all(np.isnan(found[1:]))


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train with NumPy")
def test_label_out_of_range_is_an_error_in_training():
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(4)])
    loss = SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    target = np.array([0, 3, 7, 2, 2, 1])
    with pytest.raises(IndexError, match="y_true: got 7 at position 2; expected 0 <= y_true < 4"):
        model.fit(LOGITS, target, shuffle=False, verbose=0)


def test_ignored_class_without_masks(monkeypatch):
    """Without Keras's private function for masks, in a future version."""
    monkeypatch.setattr("xentx_keras._losses.set_keras_mask", None)
    with pytest.raises(ValueError, match="ignore_class: got 255 with reduction='mean', for which"):
        SparseCategoricalCrossentropy(ignore_class=255, reduction="mean")
    loss = SparseCategoricalCrossentropy(True, 255, reduction="sum")
    expected = SparseCategoricalCrossentropy(True, reduction="sum")(TARGET[:3], LOGITS[:3])
    target = np.array([*TARGET[:3], 255, 255, 255])
    np.testing.assert_allclose(number(loss(target, LOGITS)), number(expected), rtol=1e-6)


def test_keras_mask():
    """A mask on the predictions, as from an Embedding, removes rows from the mean."""
    values = []
    for loss in (SparseCategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy):
        logits = ops.convert_to_tensor(LOGITS) + 0
        keras.src.backend.set_keras_mask(logits, ops.convert_to_tensor(TARGET != 2))
        values.append(number(loss(from_logits=True)(TARGET, logits)))
    np.testing.assert_allclose(*values, rtol=2e-6)


def test_indices_in_a_column():
    loss = SparseCategoricalCrossentropy(from_logits=True)
    assert number(loss(TARGET[:, None], LOGITS)) == number(loss(TARGET, LOGITS))


def test_options():
    options = {"weight": [1.0, 2.0, 0.5, 3.0], "z_loss": 0.01, "logit_softcap": 5.0}
    sparse = SparseCategoricalCrossentropy(True, reduction=None, label_smoothing=0.1, **options)
    dense = CategoricalCrossentropy(True, 0.1, reduction=None, **options)
    options = {**options, "label_smoothing": 0.1, "reduction": "none"}
    for loss, target in ((sparse, TARGET), (dense, SOFT)):
        expected = xentx.cross_entropy(LOGITS, target, **options)
        np.testing.assert_allclose(number(loss(target, LOGITS)), expected, rtol=1e-6)


def test_segmentation():
    """The class axis is not the last one."""
    logits = RNG.normal(size=(2, 4, 3, 3)).astype(np.float32)
    target = RNG.integers(0, 4, (2, 3, 3))
    loss = SparseCategoricalCrossentropy(from_logits=True, axis=1)
    expected = xentx.cross_entropy(logits, target, axis=1)
    np.testing.assert_allclose(number(loss(target, logits)), expected, rtol=1e-6)


def test_confident_row():
    loss = SparseCategoricalCrossentropy(from_logits=True)
    value = number(loss(np.array([0]), np.array([[20.0, 0.0]], np.float32)))
    np.testing.assert_allclose(value, 2.06115369e-09, rtol=1e-6)


def test_probability_of_zero():
    """The loss of the smallest normal number. Softmax of log 0 would have a NaN gradient."""
    loss = SparseCategoricalCrossentropy(reduction=None)
    value = number(loss(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)))
    np.testing.assert_allclose(value, [0.0, 87.336545], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_indices_need_a_dtype_with_all_integers(dtype):
    text = f"dtype: got {dtype}; expected float32 or float64, since Keras makes class indices"
    with pytest.raises(ValueError, match=text):
        SparseCategoricalCrossentropy(dtype=dtype)


@pytest.mark.parametrize(("ours", "native", "target"), PAIRS, ids=NAMES)
def test_configuration(ours, native, target):
    loss = ours(
        from_logits=True, reduction="sum", label_smoothing=0.1, weight=np.ones(4), z_loss=0.1
    )
    again = ours.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    saved = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(saved) is ours
    assert number(saved(target, LOGITS)) == number(loss(target, LOGITS))
    assert set(native().get_config()) <= set(loss.get_config())


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train with NumPy")
@pytest.mark.parametrize(("ours", "native", "target"), PAIRS, ids=NAMES)
def test_training(ours, native, target, tmp_path):
    """Equal weights after some steps, and the model can be saved with its loss."""

    def trained(loss, softmax):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Dense(4, "softmax" if softmax else None)]
        )
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        model.fit(LOGITS, target, batch_size=3, epochs=3, verbose=0, shuffle=False)
        return model

    for softmax in (False, True):
        model = trained(ours(from_logits=not softmax), softmax)
        other = trained(native(from_logits=not softmax), softmax)
        for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded.loss) is ours
    kept, again = (m.evaluate(LOGITS, target, verbose=0) for m in (model, loaded))
    np.testing.assert_allclose(kept, again, rtol=1e-6)


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train with NumPy")
def test_mixed_precision():
    """With mixed_float16 the logits of the model are float16, and the loss is float32."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(4)])
        model.compile("sgd", SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(LOGITS, TARGET, epochs=2, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.all(np.isfinite(history))
    assert history[1] < history[0]


@pytest.mark.parametrize(("ours", "_", "target"), PAIRS, ids=NAMES)
def test_numpy_arrays_in_the_other_byte_order(ours, _, target):
    def swapped(array):
        array = array.astype(array.dtype.newbyteorder(">"))
        array.flags.writeable = False
        return array

    loss = ours(from_logits=True)
    expected = number(loss(target, LOGITS, sample_weight=WEIGHTS))
    found = loss(swapped(target), swapped(LOGITS), sample_weight=swapped(WEIGHTS))
    assert number(found) == expected
    weighted = ours(from_logits=True, weight=swapped(np.arange(1.0, 5.0)))
    plain = ours(from_logits=True, weight=[1.0, 2.0, 3.0, 4.0])
    assert number(weighted(target, LOGITS)) == number(plain(target, LOGITS))


def test_xentx_tensorflow_exports_them():
    if BACKEND != "tensorflow":
        pytest.skip("imports TensorFlow")
    from xentx_tensorflow import losses

    assert losses.CategoricalCrossentropy is xentx_keras.CategoricalCrossentropy
