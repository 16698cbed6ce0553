"""The public functions with libraries of the Array API standard that have no backend in xentx.

Run by ``nox -s array_api_libraries``. For each library there are functions that convert from and to
NumPy. The results are compared with NumPy's.
"""

import importlib
import tempfile

import numpy as np
import pytest

import xentx

# Infinities are intended. NumPy warns about them in the threads of these libraries.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5)).astype(np.float32)
TARGET = np.array([0, 4, 2, -100], np.int64)
SOFT = RNG.dirichlet(np.ones(5), 4).astype(np.float32)
WEIGHT = RNG.uniform(0.5, 2, 5).astype(np.float32)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, 4).astype(np.float32)
HIDDEN = RNG.normal(size=(4, 3)).astype(np.float32)
HEAD = RNG.normal(size=(5, 3)).astype(np.float32)
OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "logit_softcap": 4.0,
    "temperature": 1.5,
    "normalizer": 3.5,
}


class Subclass(np.ndarray):
    """A subclass of NumPy's array, as many packages define."""


def memmap(array):
    """Map an array from a file."""
    with tempfile.NamedTemporaryFile() as file:
        mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        return mapped


def marray():
    """Masked arrays of array-api-strict."""
    strict = importlib.import_module("array_api_strict")
    masked = importlib.import_module("marray").masked_namespace(strict)
    return (lambda a: masked.asarray(strict.asarray(a))), lambda a: np.asarray(a.data)


def in_chunks(module, convert):
    """Arrays in chunks, of a library that computes lazily."""
    xp = importlib.import_module(module)
    return (lambda a: convert(xp, a)), lambda a: np.asarray(a.compute())


def of_namespace(module, back=np.asarray):
    """Arrays of a namespace whose `asarray` accepts NumPy arrays."""
    return importlib.import_module(module).asarray, back


LIBRARIES = {
    "array-api-strict": lambda: of_namespace("array_api_strict"),
    "jax.numpy": lambda: of_namespace("jax.numpy"),
    "NumPy, subclass": lambda: (lambda a: a.view(Subclass), np.asarray),
    "NumPy, memmap": lambda: (memmap, np.asarray),
    "Dask": lambda: in_chunks("dask.array", lambda xp, a: xp.from_array(a, chunks=2)),
    "Cubed": lambda: in_chunks("cubed.array_api", lambda xp, a: xp.asarray(a, chunks=2)),
    "ndonnx": lambda: of_namespace("ndonnx", lambda a: a.unwrap_numpy()),
    "marray": marray,
}

CALLS = {
    "log_softmax": lambda m: xentx.log_softmax(m(LOGITS)),
    "log_softmax, axis=0": lambda m: xentx.log_softmax(m(LOGITS), axis=0),
    "class indices": lambda m: xentx.cross_entropy(m(LOGITS), m(TARGET)),
    "class indices of NumPy": lambda m: xentx.cross_entropy(m(LOGITS), TARGET),
    "class indices in a list": lambda m: xentx.cross_entropy(m(LOGITS), TARGET.tolist()),
    "no reduction": lambda m: xentx.cross_entropy(m(LOGITS), m(TARGET), reduction="none"),
    "class probabilities": lambda m: xentx.cross_entropy(m(LOGITS), m(SOFT)),
    "all options": lambda m: xentx.cross_entropy(
        m(LOGITS), m(TARGET), weight=m(WEIGHT), sample_weight=m(SAMPLE_WEIGHT), **OPTIONS
    ),
    "nll_loss": lambda m: xentx.nll_loss(m(LOGITS), m(TARGET), weight=WEIGHT),
    "value_and_grad": lambda m: gradient(xentx.cross_entropy, m(LOGITS), m(TARGET)),
    "linear_cross_entropy": lambda m: xentx.linear_cross_entropy(m(HIDDEN), m(HEAD), m(TARGET)),
    "per_row": lambda m: xentx.per_row(m(LOGITS), m(TARGET)).entropy,
    "value_and_grad of the last layer": lambda m: (
        gradient(xentx.linear_cross_entropy, m(HIDDEN), m(HEAD), m(TARGET), chunk=2).head
    ),
    "partials": lambda m: xentx.finish(
        xentx.combine(
            xentx.partials(m(LOGITS[:, :2]), m(TARGET), classes=5),
            xentx.partials(m(LOGITS[:, 2:]), m(TARGET), classes=5, start=2),
        )
    ),
}


def gradient(function, *arrays, **options):
    """Gradients from `value_and_grad`."""
    return xentx.value_and_grad(function)(*arrays, **options)[1]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_as_numpy(library, call):
    make, back = library()
    np.testing.assert_allclose(back(call(make)), call(np.asarray), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["Dask", "Cubed"])
def test_lazy_arrays_are_not_computed(name, monkeypatch):
    """A graph is built without computing values. A target out of range gives NaN in its row."""
    make, back = LIBRARIES[name]()
    logits, target = make(LOGITS), make(np.array([0, 9, 2, 1]))

    def computed(*_, **__):
        pytest.fail("computed")

    with monkeypatch.context() as patch:
        patch.setattr(type(logits), "compute", computed)
        patch.setattr(type(logits), "__array__", computed)
        losses = xentx.cross_entropy(logits, target, reduction="none")
        xentx.per_row(logits, target)
    assert np.isnan(back(losses)).tolist() == [False, True, False, False]


def test_a_loss_is_exported_to_onnx():
    """A model with placeholders of ndonnx. ONNX Runtime runs it with any number of rows."""
    ndx = importlib.import_module("ndonnx")
    runtime = importlib.import_module("onnxruntime")
    logits = ndx.argument(shape=("rows", 5), dtype=ndx.float32)
    target = ndx.argument(shape=("rows",), dtype=ndx.int64)
    loss = xentx.cross_entropy(logits, target, label_smoothing=0.1, weight=WEIGHT)
    rows = xentx.cross_entropy(logits, target, reduction="none")
    model = ndx.build({"logits": logits, "target": target}, {"loss": loss, "rows": rows})
    session = runtime.InferenceSession(model.SerializeToString())
    for count in (4, 2):
        x, t = LOGITS[:count], TARGET[:count]
        found = dict(
            zip(
                [output.name for output in session.get_outputs()],
                session.run(None, {"logits": x, "target": t}),
                strict=True,
            )
        )
        expected = xentx.cross_entropy(x, t, label_smoothing=0.1, weight=WEIGHT)
        np.testing.assert_allclose(found["loss"], expected, rtol=3e-6)
        expected = xentx.cross_entropy(x, t, reduction="none")
        np.testing.assert_allclose(found["rows"], expected, rtol=3e-6)
