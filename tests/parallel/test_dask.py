"""Dask arrays in chunks of rows, of classes or of both: lazy, with the results of NumPy."""

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import xentx

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ROWS, CLASSES, FEATURES = 12, 10, 3
RNG = np.random.default_rng(20261130)
LOGITS = RNG.normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
TARGET = RNG.integers(0, CLASSES, ROWS)
LOGITS[3], TARGET[3] = np.nan, -100  # in an ignored row
LOGITS[5, 7], TARGET[5] = 40.0, 7  # confident
LOGITS[6, [1, 8]] = 9.0  # equal in two chunks
LOGITS[7, 4:8], TARGET[7] = -np.inf, 1  # a chunk without finite logits
SOFT = RNG.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
FINITE = np.nan_to_num(LOGITS, nan=0.0, neginf=-9.0)
WEIGHT = RNG.uniform(0.5, 2, CLASSES).astype(np.float32)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, ROWS).astype(np.float32)
HIDDEN = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32)
HEAD = RNG.normal(size=(CLASSES, FEATURES)).astype(np.float32)

# Chunk sizes of rows and of classes.
CHUNKS = {
    "rows": (4, CLASSES),
    "classes": (ROWS, 4),
    "both": ((1, 7, 4), (2, 8)),
}


def both(function, *arrays, **options):
    """Value and gradients."""
    value, gradients = xentx.value_and_grad(function)(*arrays, **options)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return (value, *(gradient for gradient in gradients if gradient is not None))


CALLS = {
    "class indices": lambda m: both(xentx.cross_entropy, m(LOGITS), m(TARGET)),
    "class indices of NumPy": lambda m: both(xentx.cross_entropy, m(LOGITS), TARGET),
    "class probabilities": lambda m: both(xentx.cross_entropy, m(FINITE), m(SOFT)),
    "options": lambda m: both(
        xentx.cross_entropy,
        m(FINITE),
        m(TARGET),
        weight=WEIGHT,
        sample_weight=m(SAMPLE_WEIGHT),
        label_smoothing=0.1,
        z_loss=0.01,
        logit_softcap=8.0,
        temperature=1.5,
    ),
    "weighted mean": lambda m: both(
        xentx.cross_entropy, m(FINITE), m(SOFT), weight=WEIGHT, reduction="weighted_mean"
    ),
    "nll_loss": lambda m: both(xentx.nll_loss, m(FINITE), m(TARGET)),
    "per_row": lambda m: xentx.per_row(m(FINITE), m(TARGET)),
    "linear": lambda m: both(xentx.linear_cross_entropy, m(HIDDEN), m(HEAD), m(TARGET)),
    "linear, options": lambda m: both(
        xentx.linear_cross_entropy,
        m(HIDDEN),
        m(HEAD),
        m(SOFT),
        bias=WEIGHT,
        weight=WEIGHT,
        reduction="sum",
    ),
    "linear_per_row": lambda m: xentx.linear_per_row(m(HIDDEN), m(HEAD), m(TARGET)),
}


def chunked(rows, classes):
    """Return a function that converts NumPy arrays to Dask arrays."""

    def make(array):
        features = (FEATURES,)
        chunks = {
            (ROWS,): (rows,),
            (ROWS, CLASSES): (rows, classes),
            (ROWS, FEATURES): (rows, features),
            (CLASSES, FEATURES): (classes, features),
        }
        return da.from_array(array, chunks=chunks[array.shape])

    return make


def computed(*_, **__):
    pytest.fail("computed while the graph is built")


def lazily(call, make):
    """Build graphs, and fail if one of them is computed."""
    with dask.config.set(scheduler=computed):
        found = call(make)
    assert all(isinstance(array, da.Array) for array in found)
    return found


def units(found, true):
    """Error in units in the last place of the largest number of a row."""
    assert found.shape == true.shape
    assert np.array_equal(np.isfinite(found), np.isfinite(true))
    found, true = (np.where(np.isfinite(true), a, 0.0) for a in (found, true))
    scale = np.abs(true).max(-1, keepdims=True) if true.ndim > 1 else np.abs(true)
    return (np.abs(found - true) / np.spacing(np.maximum(scale, 1e-30).astype(np.float32))).max()


def check(call, found):
    """Compare with NumPy's results for float64 arrays."""
    wide = call(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a)
    is_linear = found[0].shape == () and len(found) > 2
    for a, b in zip(found, wide, strict=True):
        most = 20 if is_linear or call is CALLS["options"] else 4
        assert units(np.asarray(a, np.float64), np.asarray(b, np.float64)) <= most


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_as_numpy(call, chunks):
    check(call, dask.compute(*lazily(call, chunked(*chunks)), scheduler="sync"))


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_gradients_keep_the_chunks(chunks):
    """Gradients have the chunks of their arguments, so no array is larger than necessary."""
    make = chunked(*chunks)
    _, by_logits = lazily(CALLS["class indices"], make)
    assert by_logits.chunks == make(LOGITS).chunks
    _, by_hidden, by_head = lazily(CALLS["linear"], make)
    assert by_hidden.chunks == make(HIDDEN).chunks
    assert by_head.chunks == make(HEAD).chunks


def test_a_row_with_a_wrong_index_is_nan():
    target = np.where(np.arange(ROWS) == 4, CLASSES, TARGET)
    (losses,) = lazily(
        lambda m: (xentx.cross_entropy(m(LOGITS), m(target), reduction="none"),),
        chunked(*CHUNKS["both"]),
    )
    found = losses.compute(scheduler="sync")
    assert np.flatnonzero(np.isnan(found)).tolist() == [4]


def test_on_a_cluster():
    """Two workers in separate processes."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        for name in ("class indices", "options", "linear"):
            found = lazily(CALLS[name], chunked(*CHUNKS["both"]))
            check(CALLS[name], client.gather(client.compute(list(found))))
