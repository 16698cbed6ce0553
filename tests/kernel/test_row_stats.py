"""Row statistics in the kernel: accuracy, special values, and bits that do not depend on the batch.

Gradients are computed by calling the kernel directly.
"""

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xentx
from xentx import _kernel_engine
from xentx._core._spec import LossSpec, Precision
from xentx.compare.regimes import REGIMES
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks, routes
from xentx.testing._checks import check_rows, row_truth
from xentx.testing._problems import OPTIONS, RNG_SEED, draw_problem

pytestmark = [
    pytest.mark.skipif(_kernel_engine.KERNEL is None, reason="xentx is without a kernel here"),
    pytest.mark.skipif("numpy" not in requested_frameworks(), reason="NumPy was not requested"),
]

DTYPES = list(oracle.DTYPES.values())
NAMES = [
    name
    for name, regime in REGIMES.items()
    if regime.needs is None and name != "gap" and not name.endswith("262144")
]
# The fields that have cotangents: some of loss, lse, log_prob and entropy.
GIVEN = ["loss", "lse", "log_prob", "entropy", "loss, log_prob", "loss, lse, log_prob, entropy"]
FIELDS = xentx.RowStats._fields[:4]


def layout(array, *axes):
    """Describe an array whose axes are some of (group, outer, classes, inner)."""
    strides = [0, 0, 0, 0]
    for axis, stride in zip(axes, array.strides, strict=True):
        strides[axis] = stride // array.itemsize
    return array.dtype.name, tuple(strides)


def pull(logits, target, cotangents, *, axis=-1, weight=None, ignore_index=-100, **options):
    """Pull four cotangents back to the logits. Each may be None."""
    axis %= logits.ndim
    shape = logits.shape
    full = (int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :])))
    compute = np.float64 if logits.dtype == np.float64 else np.float32
    soft = target.ndim == logits.ndim
    spec = LossSpec(
        "cross_entropy",
        axis,
        shape[axis],
        Precision(compute, np.float64, recover=True, compensate=False),
        soft=soft,
        ignore_index=None if soft else ignore_index,
        **options,
    )
    x = logits.reshape(full)
    t = target.reshape(full if soft else (full[0], full[2]))
    seeds = [
        None if c is None else np.ascontiguousarray(c, compute).reshape(full[0], full[2])
        for c in cotangents
    ]
    plan = _kernel_engine.plan(
        spec,
        full,
        layout(x, 1, 2, 3),
        operation="row_stats",
        target=layout(t, 1, 2, 3) if soft else layout(t, 1, 3),
        weight=None if weight is None else layout(weight, 2),
        cotangent=layout(np.empty((full[0], full[2]), compute), 1, 3),
    )
    gradient = np.empty(shape, logits.dtype)
    plan.row_stats((), gradient, tuple(seeds), 0, x, t, weight)
    return gradient


def seeds(given, rows, dtype, seed=RNG_SEED):
    """Draw cotangents of the given fields. The others are None."""
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=rows).astype(dtype) for _ in FIELDS]
    names = given.split(", ")
    return [c if field in names else None for field, c in zip(FIELDS, drawn, strict=True)]


def gradient_truth(
    logits,
    target,
    cotangents,
    *,
    weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_softcap=None,
    temperature=1.0,
):
    """True pullback of cotangents, with the classes on the last axis, and its scale."""
    x = logits.astype(oracle.LONG)
    slope, wobble, blur = oracle.LONG(1), oracle.LONG(1), 0
    if logit_softcap is not None:
        x, slope, wobble = oracle.softcap(x, oracle.LONG(logit_softcap))
    x, slope = x / oracle.LONG(temperature), slope / oracle.LONG(temperature)
    if logit_softcap is not None or temperature != 1:
        blur = np.abs(x).max(-1, keepdims=True)
    soft, classes = target.ndim == logits.ndim, x.shape[-1]
    y = target.astype(oracle.LONG) if soft else oracle.one_hot(target, classes)
    smoothing = oracle.LONG(label_smoothing)
    q = (1 - smoothing) * y + smoothing / classes
    if weight is not None:
        q = q * weight.astype(oracle.LONG)
    by_loss, by_lse, by_log_prob, by_entropy = (
        np.zeros((*x.shape[:-1], 1), oracle.LONG) if c is None else c.astype(oracle.LONG)[..., None]
        for c in cotangents
    )
    losses, p, complement = oracle.log_softmax(x)
    top = x.max(-1, keepdims=True)
    lse = top + losses.min(-1, keepdims=True)
    mean = oracle.times(p, losses).sum(-1, keepdims=True)
    r = by_loss * q - by_log_prob * y
    size = np.abs(by_loss) * q + np.abs(by_log_prob) * y
    by_all = 2 * by_loss * oracle.LONG(z_loss) * lse + by_lse

    # A p - r = (A - r) - A (1 - p), which is used if p > 0.5.
    mass, terms = r.sum(-1, keepdims=True), size.sum(-1, keepdims=True)
    gradient = np.where(p > 0.5, mass - r - mass * complement, mass * p - r)
    scale = np.where(p > 0.5, terms - size + terms * complement, terms * p + size)
    gradient = gradient + p * by_all + by_entropy * oracle.times(p, losses - mean)
    extra = 2 * np.abs(by_loss) * z_loss * (np.abs(top) + losses.min(-1, keepdims=True))
    scale = scale + p * (extra + np.abs(by_lse))
    scale = scale + np.abs(by_entropy) * oracle.times(p, losses + mean)
    # An error of the logits changes p, and the gap in the entropy's derivative.
    scale = scale * (1 + blur) + blur * p * np.abs(by_entropy)
    kept = np.ones(x.shape[:-1], bool) if soft else target != ignore_index
    return tuple(
        np.where(kept[..., None], part, 0)
        for part in (gradient * slope, scale * np.abs(slope) * wobble)
    )


def case_of(name, dtype):
    """Logits and targets of a regime."""
    case = REGIMES[name].case(dtype, RNG_SEED)
    rows = slice(100_000 // case.logits.shape[-1])
    return case.logits.astype(oracle.DTYPES[dtype])[rows], case.target[rows]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", list(oracle.DTYPES))
def test_fields_are_as_accurate_as_the_loss(name, dtype):
    logits, target = case_of(name, dtype)
    stats = xentx.per_row(logits, target)
    truth = row_truth(logits, target)
    assert stats.loss.tobytes() == xentx.cross_entropy(logits, target, reduction="none").tobytes()
    np.testing.assert_array_equal(stats.prediction, logits.argmax(-1))
    np.testing.assert_array_equal(stats.correct, logits.argmax(-1) == target)
    # All terms of these fields have the same sign.
    loss, entropy = {"float32": (1, 2), "float64": (3, 4)}.get(dtype, (0.501, 0.501))
    for field, units in (("loss", loss), ("log_prob", loss), ("entropy", entropy)):
        true = truth.fields[FIELDS.index(field)]
        normal = np.abs(true) >= oracle.tiny(logits.dtype)
        assert oracle.ulps(getattr(stats, field), true)[normal].max(initial=0) <= units, field
    oracle.assert_within(stats.lse, truth.fields[1], truth.scales[1], 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", list(oracle.DTYPES))
@pytest.mark.parametrize("given", GIVEN)
def test_gradients_are_within_units_of_their_terms(name, dtype, given):
    logits, target = case_of(name, dtype)
    cotangents = seeds(given, target.shape, logits.dtype)
    truth, scale = gradient_truth(logits, target, cotangents)
    units = 4 if dtype == "float64" else 2
    oracle.assert_within(pull(logits, target, cotangents), truth, scale, units)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 300])
def test_options(name, soft, dtype, classes):
    rng = np.random.default_rng(RNG_SEED)
    logits, target, options, _ = draw_problem(
        rng, (40, classes), 1, dtype, soft=soft, reduction="none", options=OPTIONS[name]
    )
    for unused in ("sample_weight", "reduction", "axis"):
        options.pop(unused, None)
    stats = xentx.per_row(logits, target, **options)
    loss = xentx.cross_entropy(logits, target, reduction="none", **options)
    assert stats.loss.tobytes() == loss.tobytes()
    found = np.stack([field.astype(np.float64) for field in stats])
    check_rows(found.astype(logits.dtype), row_truth(logits, target, **options), 2)
    for given in GIVEN:
        cotangents = seeds(given, loss.shape, dtype)
        truth, scale = gradient_truth(logits, target, cotangents, **options)
        oracle.assert_within(pull(logits, target, cotangents, **options), truth, scale, 3)


def problem(seed):
    """Draw a problem of random shape, dtype and options, and cotangents."""
    rng = np.random.default_rng(seed)
    rows = tuple(rng.integers(1, 9, rng.integers(1, 3)))
    axis = int(rng.integers(len(rows) + 1))
    classes = int(rng.choice([1, 2, 10, 65, 300, 2049, 5001]))
    logits, target, options, _ = draw_problem(
        rng,
        (*rows[:axis], classes, *rows[axis:]),
        axis,
        DTYPES[seed % 4],
        soft=seed % 3 == 0,
        reduction="none",
        options=list(OPTIONS.values())[seed % len(OPTIONS)],
    )
    for unused in ("sample_weight", "reduction"):
        options.pop(unused, None)
    scale = rng.choice([1, 30, 1000])
    logits = (logits * scale).astype(logits.dtype)
    return logits, target, options, seeds(GIVEN[seed % len(GIVEN)], rows, logits.dtype, seed)


def results(seed):
    """Fields and gradient."""
    logits, target, options, cotangents = problem(seed)
    return *xentx.per_row(logits, target, **options), pull(logits, target, cotangents, **options)


def digest(arrays):
    """Digest of the bits of arrays."""
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()


@pytest.mark.parametrize("seed", range(60))
def test_bits_of_a_row_do_not_depend_on_batch_and_layout(seed):
    logits, target, options, cotangents = problem(seed)
    axis = options.pop("axis")
    *fields, gradient = results(seed)
    moved = np.moveaxis(logits, axis, -1).copy()
    soft = target.ndim == logits.ndim
    last = np.moveaxis(target, axis, -1).copy() if soft else target
    assert digest(xentx.per_row(moved, last, axis=-1, **options)) == digest(fields)
    back = np.moveaxis(pull(moved, last, cotangents, **options), -1, axis)
    assert back.tobytes() == gradient.tobytes()
    view = np.moveaxis(moved, -1, axis)  # strided
    assert digest(xentx.per_row(view, target, axis=axis, **options)) == digest(fields)
    for at in list(np.ndindex(fields[0].shape))[:4]:
        row = xentx.per_row(moved[at], last[at], **options)
        assert digest(row) == digest([field[at] for field in fields])
        own = [None if c is None else c[at] for c in cotangents]
        slope = pull(moved[at][None], last[at][None], own, **options)
        assert slope[0].tobytes() == np.moveaxis(gradient, axis, -1)[at].tobytes()


@pytest.mark.parametrize("seed", range(30))
def test_a_gradient_by_the_loss_alone_has_the_bits_of_cross_entropy(seed):
    logits, target, options, _ = problem(seed)
    rows = np.delete(logits.shape, options["axis"])
    cotangents = seeds("loss", tuple(rows), logits.dtype)
    _, expected = xentx.value_and_grad(xentx.cross_entropy)(
        logits, target, reduction="none", cotangent=cotangents[0], **options
    )
    zero = np.zeros_like(cotangents[0])
    for others in (None, zero):
        found = pull(logits, target, [cotangents[0], others, others, others], **options)
        assert found.tobytes() == expected.tobytes()


def test_gradients_past_the_caches_have_the_same_bits():
    """Gradients of 16 MB and more are written with streaming stores, except accurate entries."""
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (900, 5003)).astype(np.float32)
    leaders = rng.integers(0, 5003, 900)
    logits[np.arange(900), leaders] += 30
    target = np.where(rng.random(900) < 0.5, leaders, rng.integers(0, 5003, 900))
    cotangents = seeds(GIVEN[-1], (900,), np.float32)
    whole = pull(logits, target, cotangents)
    for i in range(0, 900, 300):
        part = slice(i, i + 300)
        own = [c[part] for c in cotangents]
        assert pull(logits[part], target[part], own).tobytes() == whole[part].tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [4, 40, 3000])
def test_corners(dtype, classes):
    """Ignored rows are 0, damaged rows are NaN, and a class at -inf does not contribute."""
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(size=(8, classes)).astype(dtype)
    target = np.array([0, 1, -100, 1, 2, 3, 1, -100])
    logits[0, 1:] = -np.inf  # all others masked
    logits[1, 1] = -np.inf  # the target
    logits[2] = np.nan  # ignored
    logits[3, 2] = np.nan
    logits[4, 3] = np.inf
    logits[5] = -np.inf
    logits[6, 3] = -np.inf
    stats = xentx.per_row(logits, target)
    damaged = np.isin(np.arange(8), [3, 4, 5])
    for field in stats[:4]:
        np.testing.assert_array_equal(np.isnan(field), damaged)
        np.testing.assert_array_equal(field[[2, 7]], 0)
    assert [stats.loss[1], stats.log_prob[1]] == [np.inf, -np.inf]
    assert [field[0] for field in (stats.loss, stats.log_prob, stats.entropy)] == [0, 0, 0]
    assert not np.any(stats.correct[[2, 7]])
    assert stats.correct[0]
    np.testing.assert_array_equal(stats.prediction[[0, 2, 3, 4, 5, 7]], [0, 0, 2, 3, 0, 0])
    assert stats.prediction.dtype == np.int64
    for given in GIVEN:
        gradient = pull(logits, target, seeds(given, (8,), dtype))
        np.testing.assert_array_equal(np.isnan(gradient).any(-1), damaged)
        np.testing.assert_array_equal(np.isnan(gradient).all(-1), damaged)
        np.testing.assert_array_equal(gradient[[2, 7]], 0)
        assert gradient[6, 3] == 0
        if "loss" not in given and "log_prob" not in given:
            assert gradient[1, 1] == 0


def test_a_target_out_of_range():
    """Loss and log-probability of its row are NaN.

    The gradient is NaN only if the loss has a cotangent.
    """
    logits = np.random.default_rng(RNG_SEED).normal(size=(2, 50)).astype(np.float32)
    bad, good = np.array([50, 3]), np.array([4, 3])
    with pytest.raises(IndexError, match="target: got 50 at position 0"):
        xentx.per_row(logits, bad)
    for given in GIVEN:
        cotangents = seeds(given, (2,), np.float32)
        found, expected = (pull(logits, target, cotangents) for target in (bad, good))
        np.testing.assert_array_equal(found[1], expected[1])
        if "loss" in given:
            assert np.isnan(found[0]).all()
        elif given == "log_prob":
            np.testing.assert_array_equal(found[0], 0)
        else:
            np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_capped_logit_has_all_its_digits_however_small(dtype):
    rng = np.random.default_rng(RNG_SEED)
    lowest = -37 if dtype == np.float32 else -300
    exponents = np.concatenate([rng.uniform(lowest, -3, 500), rng.uniform(-3, 2, 500)])
    logits = (10.0**exponents).astype(dtype)[:, None] * rng.choice([-1, 1], (1000, 1)).astype(dtype)
    for cap in (0.3, 30.0):
        # For one class, lse is the capped logit.
        found = xentx.per_row(logits, np.zeros(1000, np.int64), logit_softcap=cap).lse
        truth, _, _ = oracle.softcap(logits.astype(np.longdouble), np.longdouble(cap))
        assert oracle.ulps(found, truth[:, 0]).max() <= (0.6 if dtype == np.float32 else 4)


def test_extreme_cotangents_and_logits():
    """Factors that overflow or underflow in float32 are computed in float64."""
    logits = np.array([[0.0, 1.0, -2.0], [1e6, 1e6 + 1, 5.0], [-3e38, -3e38, 0.0]], np.float32)
    target = np.array([1, 0, 0])
    for scale in (1e-30, 1e30):
        cotangents = [np.full(3, scale, np.float32) for _ in FIELDS]
        cotangents[0] = None
        truth, size = gradient_truth(logits, target, cotangents)
        oracle.assert_within(pull(logits, target, cotangents), truth, size, 2)


PROGRAM = """
import test_row_stats
from xentx import _kernel_engine
print(_kernel_engine.KERNEL.instruction_set())
print([test_row_stats.digest(test_row_stats.results(seed)) for seed in range(80)])
"""


def run(**environment):
    """Run the program with environment variables, and return the lines that it prints."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "XENTX_ENGINE": "kernel", **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_instruction_set_and_number_of_threads_has_the_same_bits():
    _, *expected = run(XENTX_NUM_THREADS="1")
    found = set()
    for asked in ("avx512", "avx2", "neon", "baseline"):
        for threads in ("1", "3"):
            used, *digests = run(XENTX_ISA=asked, XENTX_NUM_THREADS=threads)
            found.add(used)
            assert digests == expected, (used, threads)
    assert len(found) > 1


OTHERS = [
    route for route in routes(*requested_frameworks()) if route.name not in {"numpy", "strict"}
]
# Compiling is slow, so a route tests one of this many problems. The numbers are primes, so that
# every dtype and option is tested.
EVERY = {"jax": 7, "jax:jit": 5, "tensorflow:function": 5}


def field_of(field, target, options, logits):
    """One of the fields as a function of the logits."""
    return getattr(xentx.per_row(logits, target, **options), field)


def weighted(target, options, cotangents, logits):
    """Sum of the fields, weighted by their cotangents."""
    stats = xentx.per_row(logits, target, **options)
    fields = [(f, c) for f, c in zip(stats[:4], cotangents, strict=True) if c is not None]
    total = 0
    for field, cotangent in fields:
        total = total + (field * cotangent)
    return total


@pytest.mark.skipif(not OTHERS, reason="only one framework is requested")
@pytest.mark.parametrize("make", OTHERS, ids=lambda route: route.name)
def test_every_framework_has_the_same_bits(make):
    route = make()
    if not route.has_autodiff:
        pytest.skip(f"{route} has no autodiff")
    for seed in range(0, 60, EVERY.get(route.name, 1)):
        logits, target, options, cotangents = problem(seed)
        *fields, gradient = results(seed)
        given = {"logits": logits, "target": target}
        given |= {name: v for name, v in options.items() if isinstance(v, np.ndarray)}
        given |= {f"cotangent {i}": c for i, c in enumerate(cotangents) if c is not None}
        static = {name: value for name, value in options.items() if name not in given}

        def everything(given, static=static):
            own = dict(given)
            logits, target = own.pop("logits"), own.pop("target")
            seeds = [own.pop(f"cotangent {i}", None) for i in range(4)]
            own |= static
            function = functools.partial(weighted, target, own, seeds)
            one = seeds[[s is not None for s in seeds].index(True)]
            _, (slope,) = route.differentiate(function, [logits], one * 0 + 1)
            return *xentx.per_row(logits, target, **own), slope

        with route.precision(*given.values()):
            values = [route.array(value) for value in given.values()]
            found = route.compiled(everything, list(given))(*values)
            found = [route.numpy(value) for value in found]
        for name, got, true in zip(
            (*xentx.RowStats._fields, "gradient"), found, (*fields, gradient), strict=True
        ):
            kind = got.dtype if name == "prediction" else true.dtype
            assert np.asarray(got).tobytes() == true.astype(kind).tobytes(), (seed, name)
