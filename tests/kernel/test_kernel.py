"""The kernel, called with NumPy arrays: bits, accuracy, unusual input, threads."""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xentx
import xentx_numpy
from xentx import _blocks, _kernel_blocks, _kernel_engine
from xentx._core import linear as core_linear
from xentx._core import partials as monoid
from xentx._core._spec import LossSpec, Precision
from xentx.compare.regimes import REGIMES
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks
from xentx.testing._engines import portable_core
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem
from xentx_numpy import _memory

pytestmark = [
    pytest.mark.skipif(_kernel_engine.KERNEL is None, reason="xentx is without a kernel here"),
    pytest.mark.skipif("numpy" not in requested_frameworks(), reason="NumPy was not requested"),
]

DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")] + [
    np.dtype(ml_dtypes.bfloat16)
]
NAMES = [name for name, regime in REGIMES.items() if regime.needs is None and name != "gap"]
both = xentx.value_and_grad(xentx.cross_entropy)


def portable(*args, **kwargs):
    """Value and gradient from the portable core."""
    with portable_core(xentx_numpy.BACKEND):
        return both(*args, **kwargs)


def problem(seed, *, most=40, widest=300):
    """Draw a problem of random shape, dtype and options, and its cotangent."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, most, rng.integers(1, 4)))
    axis = int(rng.integers(len(shape)))
    shape = (*shape[:axis], int(rng.integers(1, widest)), *shape[axis + 1 :])
    logits, target, options, cotangent = draw_problem(
        rng,
        shape,
        axis,
        DTYPES[seed % 4],
        soft=seed % 3 == 0,
        reduction=REDUCTIONS[seed % 4],
        options=list(OPTIONS.values())[seed % len(OPTIONS)],
    )
    scale = rng.choice([1, 30, 1000])
    return (logits * scale).astype(logits.dtype), target, options, cotangent


def digest(results):
    """Digest of the bits of a value and a gradient."""
    return hashlib.sha256(b"".join(np.asarray(r).tobytes() for r in results)).hexdigest()


def errors(name, dtype, **options):
    """Largest errors of the losses and of the gradient in a regime, in units in the last place."""
    case = REGIMES[name].case(dtype, RNG_SEED)
    logits = case.logits.astype(oracle.DTYPES[dtype])
    truth = oracle.cross_entropy(logits, case.target, reduction="none")
    loss, gradient = both(logits, case.target, reduction="none", **options)
    found = []
    for got, true in ((loss, truth.value), (gradient, truth.gradient)):
        normal = np.abs(true) >= oracle.tiny(logits.dtype)
        found.append(oracle.ulps(got, true)[normal].max(initial=0))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_within_one_unit_and_gradients_within_two(name):
    loss, gradient = errors(name, "float32")
    assert loss <= 1
    assert gradient <= 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_exact_is_correctly_rounded(name, dtype):
    loss, gradient = errors(name, dtype, precision="exact")
    assert loss <= 0.5001
    assert gradient <= 0.5001


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_correctly_rounded_as_they_come(name, dtype):
    loss, gradient = errors(name, dtype)
    assert loss <= 0.501
    assert gradient <= 0.501


def shared_out(kind, logits, target, seed=RNG_SEED):
    """Return a target and options for which every class has a part of q."""
    rng = np.random.default_rng(seed)
    classes = logits.shape[-1]
    options = {}
    if "weights" in kind:
        options["weight"] = rng.uniform(0.1, 2, classes).astype(np.float32)
    if "smoothing" in kind:
        options["label_smoothing"] = 0.1
    if "soft" in kind:
        target = rng.gamma(0.5, size=logits.shape)
        target = (target / target.sum(-1, keepdims=True)).astype(logits.dtype)
    return target, options


SHARED_OUT = ["smoothing", "smoothing, weights", "soft", "soft, smoothing", "soft, weights"]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("262144")])
@pytest.mark.parametrize("kind", SHARED_OUT)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_losses_with_terms_of_every_class_are_as_accurate(name, kind, dtype):
    case = REGIMES[name].case(dtype, RNG_SEED)
    logits = case.logits.astype(oracle.DTYPES[dtype])[:400]
    target, options = shared_out(kind, logits, case.target[:400])
    truth = oracle.cross_entropy(logits, target, reduction="none", **options)
    value, gradient = both(logits, target, reduction="none", **options)
    # All terms of a loss have the same sign. Terms of a gradient cancel if the prediction is
    # correct.
    assert oracle.ulps(value, truth.value).max() <= (1 if dtype == "float32" else 0.501)
    oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, 2)


CHANGES = {
    "temperature": {"temperature": 0.7},
    "cap": {"logit_softcap": 30.0},
    "cap, temperature": {"logit_softcap": 5.0, "temperature": 1.5},
    "low cap": {"logit_softcap": 0.01},
}


def truth_of_changed(logits, target, *, logit_softcap=None, temperature=1.0, axis=-1, **options):
    """True values with the scale of the plain loss: the softcap and temperature add no error."""
    x, slope = logits.astype(np.longdouble), np.longdouble(1)
    if logit_softcap is not None:
        x, slope, _ = oracle.softcap(x, np.longdouble(logit_softcap))
    over = 1 / np.longdouble(temperature)
    truth = oracle.cross_entropy(x * over, target, axis=axis, reduction="none", **options)
    return dataclasses.replace(
        truth,
        gradient=truth.gradient * (slope * over),
        gradient_scale=truth.gradient_scale * (slope * over),
    )


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("262144")])
@pytest.mark.parametrize("kind", ["", *SHARED_OUT])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_logits_are_as_accurate(name, kind, change):
    case = REGIMES[name].case("float32", RNG_SEED)
    logits = case.logits.astype(np.float32)[:60]
    target, options = shared_out(kind, logits, case.target[:60])
    truth = truth_of_changed(logits, target, **CHANGES[change], **options)
    value, gradient = both(logits, target, reduction="none", **CHANGES[change], **options)
    assert oracle.ulps(value, truth.value).max() <= 1
    if not kind:
        normal = np.abs(truth.gradient) >= oracle.tiny(gradient.dtype)
        assert oracle.ulps(gradient, truth.gradient)[normal].max(initial=0) <= 2
    oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, 2)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("262144")])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_log_softmax_and_its_pullback_are_as_accurate(name, dtype):
    x = REGIMES[name].case(dtype, RNG_SEED).logits.astype(oracle.DTYPES[dtype])[:400]
    rng = np.random.default_rng(RNG_SEED)
    losses, p, complement = oracle.log_softmax(x.astype(np.longdouble))
    for c in (rng.normal(size=x.shape).astype(x.dtype), np.broadcast_to(x.dtype.type(1), x.shape)):
        value, gradient = log_softmax_of(x, c)
        assert oracle.ulps(value, -losses).max() <= (1 if dtype == "float32" else 0.501)
        size = np.abs(c).sum(-1, keepdims=True, dtype=np.longdouble)
        total = c.sum(-1, keepdims=True, dtype=np.longdouble)
        truth = np.where(p > 0.5, c * complement - p * (total - c), c - p * total)
        scale = np.where(
            p > 0.5, np.abs(c) * complement + p * (size - np.abs(c)), np.abs(c) + p * size
        )
        oracle.assert_within(gradient, truth, scale, 2)


def test_a_misled_row_has_no_probability_above_one():
    logits = np.random.default_rng(RNG_SEED).normal(0, 3000, (4096, 10)).astype(np.float32)
    _, gradient = both(logits, logits.argmin(-1), reduction="sum")
    assert gradient.max() <= 1


@pytest.mark.parametrize(
    "change", [{}, CHANGES["temperature"], CHANGES["cap, temperature"]], ids=str
)
@pytest.mark.parametrize("seed", range(60))
def test_bits_of_a_row_do_not_depend_on_batch_and_layout(seed, change):
    logits, target, options, _ = problem(seed)
    options = {**options, "reduction": "none", **change}
    options.pop("normalizer", None)
    axis = options.pop("axis")
    whole = both(logits, target, axis=axis, **options)
    moved = np.moveaxis(logits, axis, -1).copy()
    soft = target.ndim == logits.ndim
    last = np.moveaxis(target, axis, -1).copy() if soft else target
    value, gradient = both(moved, last, axis=-1, **options)
    assert value.tobytes() == whole[0].tobytes()
    assert np.moveaxis(gradient, -1, axis).tobytes() == whole[1].tobytes()
    view = np.moveaxis(moved, -1, axis)  # strided
    assert digest(both(view, target, axis=axis, **options)) == digest(whole)

    weights = options.pop("sample_weight", None)
    for at in list(np.ndindex(value.shape))[:5]:
        own = {} if weights is None else {"sample_weight": weights[at]}
        row = both(moved[at], last[at], **options, **own)
        assert row[0].tobytes() == value[at].tobytes()
        assert row[1].tobytes() == gradient[at].tobytes()


def block(seed):
    """States and gradients of a block of random logits, from the kernel and from the core."""
    rng = np.random.default_rng(seed)
    rows, width = int(rng.integers(0, 9)), int(rng.integers(1, 40))
    first, after = (int(n) for n in rng.integers(0, 9, 2))
    classes, soft = first + width + after, seed % 3 == 0
    logits = rng.normal(0, 4, (rows, width))
    special = rng.random(logits.shape)
    logits[special < 0.02] = -np.inf
    logits[special > 0.995] = rng.choice([np.inf, np.nan])
    if seed % 7 == 0:
        logits[:] = -np.inf
    logits = logits.astype(np.float64 if seed % 2 else np.float32)
    target = rng.gamma(0.5, size=(rows, width)).astype(logits.dtype)
    if not soft:
        target = rng.choice([*range(classes), -100, classes + 1, -1], (rows, 1))
    weight = rng.uniform(0, 2, (1, width)).astype(logits.dtype) if seed % 5 else None
    options = {
        "label_smoothing": float(rng.choice([0.0, 0.3, 1.0])),
        "z_loss": float(rng.choice([0.0, 0.1])),
        "logit_softcap": rng.choice([None, 4.0]),
        "temperature": float(rng.choice([1.0, 0.7])),
    }
    wide = Precision(np.float64, np.float64, recover=True, compensate=False)
    ignored = None if soft else -100
    spec = LossSpec("cross_entropy", 1, classes, wide, soft, ignore_index=ignored, **options)
    core = core_linear.portable(np, spec, None)
    kernel = _kernel_blocks.engine(spec, core, lambda x: x, lambda x, _: x, 0)

    given = (target, weight, first)
    exact = (target.astype(np.float64) if soft else target,)
    exact += (None if weight is None else weight.astype(np.float64), first)
    with np.errstate(all="ignore"):
        expected = core.state(logits.astype(np.float64), *exact)
        state = kernel.state(logits.copy(), *given)
        # Combine with the states of another block.
        others = core.state(rng.normal(0, 4, (rows, width)), *exact)
        known = monoid.combine(np, expected, others)
        cotangent = rng.normal(size=rows)
        slope = core.gradient(known, cotangent, logits.astype(np.float64), *exact)
        found = kernel.gradient(known, cotangent, logits.copy(), *given)
    return (state, found), (expected, slope)


@pytest.mark.parametrize("seed", range(200))
def test_blocks_are_as_the_core_has_them(seed):
    (state, gradient), (expected, slope) = block(seed)
    # If a row becomes NaN, it does not matter which of its sums is NaN.
    spoilt = np.isnan(np.stack(expected)).any(0) | np.isinf(expected.top) & (expected.top > 0)
    for got, true in zip(state, expected, strict=True):
        np.testing.assert_allclose(got[~spoilt], true[~spoilt], rtol=1e-13, atol=1e-300)
    assert np.array_equal(np.isnan(np.stack(state)).any(0), spoilt)
    assert gradient.dtype == (np.float64 if seed % 2 else np.float32)
    unit = np.finfo(gradient.dtype).eps
    np.testing.assert_allclose(gradient, slope, rtol=0.51 * unit + 1e-13, atol=1e-13)


def refused(*_, **__):
    """Replace the portable core where the kernel must be used."""
    raise AssertionError


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_public_blocks_take_the_kernel(dtype, axis, monkeypatch):
    """Blocks with any strides use the kernel, and the results are close to those of the core."""
    rng = np.random.default_rng(RNG_SEED)
    x = rng.normal(size=(12, 12)).astype(dtype)[1:9:2, 1:9:2]
    target, cotangent = rng.integers(0, 9, 4), rng.normal(size=4)
    options = {"classes": 9, "start": 3, "axis": axis, "label_smoothing": 0.1, "temperature": 0.7}

    def solved():
        state = xentx.partials(x, target, **options)
        return (*state, xentx.block_gradient(state, x, target, cotangent=cotangent, **options))

    with monkeypatch.context() as patched:
        patched.setattr(monoid, "partials", refused)
        patched.setattr(monoid, "gradient", refused)
        by_kernel = solved()
    monkeypatch.setattr(_blocks, "KERNEL", None)
    for found, expected in zip(by_kernel, solved(), strict=True):
        assert found.dtype == expected.dtype
        unit = 1e-3 if dtype == np.float16 else np.finfo(found.dtype).eps
        np.testing.assert_allclose(found, expected, rtol=8 * unit, atol=unit)


INSTRUCTION_SETS = ("avx512", "avx2", "neon", "baseline")

PROGRAM = """
import sys
import test_kernel
from xentx.testing import requested_frameworks
from xentx import _kernel_engine
print(_kernel_engine.KERNEL.instruction_set())
print([test_kernel.digest(test_kernel.both(*p[:2], cotangent=p[3], **p[2]))
       for p in map(test_kernel.problem, range(120))])
for kind in ["", *test_kernel.SHARED_OUT]:
    logits, target = test_kernel.wide()
    target, options = test_kernel.shared_out(kind, logits, target)
    for change in [{}, *test_kernel.CHANGES.values()]:
        print(test_kernel.digest(test_kernel.both(logits, target, **options, **change)))
print(test_kernel.digest(test_kernel.log_softmax_of(logits, target)))
blocks = [test_kernel.block(seed)[0] for seed in range(40)]
print([test_kernel.digest([*state, gradient]) for state, gradient in blocks])
"""


def log_softmax_of(logits, cotangent):
    """Value and gradient of log_softmax."""
    return xentx.value_and_grad(xentx.log_softmax)(logits, cotangent=cotangent)


def wide():
    """Draw a problem large enough for several threads, with classes for several blocks."""
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 5, (70, 5001)).astype(np.float32)
    return logits, rng.integers(0, 5001, 70)


def run(program, **environment):
    """Run a program with environment variables, and return the lines that it prints."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "XENTX_ENGINE": "kernel", **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@functools.cache
def own_digests():
    """Digests with one thread and the default instruction set."""
    return run(PROGRAM, XENTX_NUM_THREADS="1")[1:]


@pytest.mark.parametrize("asked", INSTRUCTION_SETS)
def test_every_instruction_set_and_number_of_threads_has_the_same_bits(asked):
    for threads in ("1", "5"):
        used, *digests = run(PROGRAM, XENTX_ISA=asked, XENTX_NUM_THREADS=threads)
        assert digests == own_digests(), (used, threads)


def test_there_are_several_instruction_sets():
    program = "from xentx import _kernel_engine as e; print(e.KERNEL.instruction_set())"
    found = {run(program, XENTX_ISA=asked)[0] for asked in INSTRUCTION_SETS}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("engine", "expected"), [("portable", "portable"), ("kernel", "kernel"), ("", "")]
)
def test_the_engine_is_chosen_by_name(engine, expected):
    program = "import xentx; print(xentx.backends()[0].engine)"
    if not engine:
        program = "import os; del os.environ['XENTX_ENGINE'];" + program
    assert run(program, XENTX_ENGINE=engine)[0].startswith(expected)


WHY = """
import sys
{break_it}
import numpy, xentx
print(xentx.backends()[0] == xentx.backend_of(numpy.zeros(3)))
print(xentx.backend_of(numpy.zeros(3)).engine)
print(xentx.backend_of(numpy.zeros(3)).reason)
"""
NOT_THERE = "sys.modules['xentx._kernel'] = None"
NOT_LOADING = """
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "xentx._kernel":
            raise ImportError("undefined symbol: cblas")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.parametrize(
    ("environment", "break_it", "reason"),
    [
        ({"XENTX_ENGINE": "portable"}, "", "XENTX_ENGINE=portable is set (hint: unset it to use"),
        ({}, NOT_THERE, "this installation of xentx has no CPU kernel (hint: with GCC or Clang"),
        ({}, NOT_LOADING, "the CPU kernel of this installation does not load: undefined symbol"),
        pytest.param(
            {"XENTX_ISA": "baseline"},
            "",
            "XENTX_ISA=baseline leaves no fused multiply-add",
            marks=pytest.mark.skipif(
                platform.machine() in {"aarch64", "arm64"}, reason="the baseline has it"
            ),
        ),
    ],
)
def test_a_portable_engine_has_a_reason(environment, break_it, reason):
    environment = {"XENTX_ENGINE": "auto"} | environment
    same, engine, why = run(WHY.format(break_it=break_it), **environment)
    assert same == "True"
    assert engine == "portable"
    assert why.startswith(reason)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (NOT_THERE, "this installation of xentx has no CPU kernel"),
        (NOT_LOADING, "the CPU kernel of this installation does not load: undefined symbol"),
    ],
)
def test_a_requested_kernel_that_fails_is_an_error(break_it, reason):
    program = WHY.format(break_it=break_it).replace(
        "import numpy, xentx",
        "try:\n    import xentx\nexcept ImportError as error:\n    sys.exit(print(error))",
    )
    (line,) = run(program, XENTX_ENGINE="kernel")
    assert line.startswith(f"XENTX_ENGINE: got 'kernel', but {reason}")


def test_an_unknown_engine_is_an_error():
    program = """
try:
    import xentx
except ValueError as error:
    print(error)
"""
    expected = "XENTX_ENGINE: got 'fast'; expected 'kernel', 'portable', 'triton' or nothing"
    assert run(program, XENTX_ENGINE="fast") == [expected]


SPECIAL = st.sampled_from(
    [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e30, 131072.5, -131073.0, 1e-45, 88.7]
)


@given(
    data=st.data(),
    shape=hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70),
    dtype=st.sampled_from(DTYPES),
    reduction=st.sampled_from(REDUCTIONS),
    smoothing=st.sampled_from([0.0, 0.0, 0.1]),
    transposed=st.booleans(),
    change=st.sampled_from([{}, {"temperature": 1.5}, {"logit_softcap": 20.0}]),
)
def test_odd_logits_come_out_as_the_core_has_them(
    data, shape, dtype, reduction, smoothing, transposed, change
):
    values = hnp.arrays(np.float64, shape, elements=st.one_of(SPECIAL, st.floats(-30, 30)))
    with np.errstate(over="ignore"):
        logits = data.draw(values).astype(dtype)
    target = data.draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    if transposed:
        logits = np.asfortranarray(logits)
    options = {"reduction": reduction, "label_smoothing": smoothing, **change}
    value, gradient = both(logits, target, **options)
    expected_value, expected_gradient = portable(logits, target, **options)
    eps = oracle.epsilon(dtype)
    pairs = ((value, expected_value), (gradient, expected_gradient))
    for got, expected in (map(np.float64, pair) for pair in pairs):
        finite = np.abs(expected[np.isfinite(expected)])
        # A sum that overflows in one may not overflow in the other. The same is true for the
        # difference of two logits, which the core computes in their dtype.
        given = np.abs(np.float64(logits[np.isfinite(logits)]))
        largest = max(finite.max(initial=0), given.max(initial=0))
        if largest < 1e38 or dtype == np.float64:
            np.testing.assert_allclose(got, expected, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 63, 64, 65, 2047, 2048, 2049, 4100])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17])
@pytest.mark.parametrize("axis", [0, 1])
def test_sizes_at_the_edges_of_vectors_and_blocks(rows, classes, axis):
    rng = np.random.default_rng(RNG_SEED)
    shape = (rows, classes) if axis == 1 else (classes, rows)
    logits = rng.normal(0, 3, shape).astype(np.float32)
    target = rng.integers(0, classes, rows)
    truth = oracle.cross_entropy(logits, target, axis=axis, reduction="none")
    value, gradient = both(logits, target, axis=axis, reduction="none")
    oracle.assert_within(value, truth.value, truth.value_scale, 2)
    oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, 4)
    for kind in SHARED_OUT:
        x = np.moveaxis(logits, axis, -1)
        q, options = shared_out(kind, x, target)
        truth = oracle.cross_entropy(x, q, reduction="none", **options)
        if "soft" in kind:
            q = np.moveaxis(q, -1, axis)
        value, gradient = both(logits, q, axis=axis, reduction="none", **options)
        oracle.assert_within(value, truth.value, truth.value_scale, 2)
        true, scale = (np.moveaxis(a, -1, axis) for a in (truth.gradient, truth.gradient_scale))
        oracle.assert_within(gradient, true, scale, 4)


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 64, 65, 2047, 2048, 2049, 4100])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_logits_at_the_edges_of_vectors_and_blocks(classes, axis, change):
    rng = np.random.default_rng(RNG_SEED)
    x = rng.normal(0, 3, (17, classes)).astype(np.float32)
    # Infinite logits, which a softcap makes finite, and rows whose first block has only such
    # logits.
    infinite = rng.random(x.shape) < 0.1
    infinite[3] = infinite[5, :2048] = True
    x[infinite] = -np.inf
    x[7] = np.finfo(np.float32).min
    for kind in ["", *SHARED_OUT]:
        q, options = shared_out(kind, x, rng.integers(0, classes, 17))
        if "soft" in kind:
            q[np.isinf(x)] = 0
        truth = truth_of_changed(x, q, **options, **CHANGES[change])
        if "soft" in kind:
            q = np.moveaxis(q, -1, axis)
        logits = np.moveaxis(x, -1, axis)
        value, gradient = both(logits, q, axis=axis, reduction="none", **options, **CHANGES[change])
        oracle.assert_within(value, truth.value, truth.value_scale, 2)
        true, scale = (np.moveaxis(a, -1, axis) for a in (truth.gradient, truth.gradient_scale))
        oracle.assert_within(gradient, true, scale, 4)


@pytest.mark.parametrize("kind", ["", *SHARED_OUT])
@pytest.mark.parametrize("change", ["", *CHANGES])
def test_maxima_that_rise_from_block_to_block(kind, change):
    """Each block has a larger maximum than the previous ones, so the sums are rescaled."""
    rising = np.linspace(-300, 300, 20_000, dtype=np.float32)[None, :]
    masked = np.where(np.arange(20_000) < 5000, -np.inf, rising).astype(np.float32)
    for x, index in ((rising, 19_990), (rising[:, ::-1].copy(), 9), (masked, 19_990)):
        target, options = shared_out(kind, x, np.array([index]))
        if "soft" in kind:
            target[np.isinf(x)] = 0
        options |= CHANGES.get(change, {})
        truth = truth_of_changed(x, target, **options)
        value, gradient = both(x, target, reduction="none", **options)
        oracle.assert_within(value, truth.value, truth.value_scale, 2)
        oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, 4)


@pytest.mark.parametrize("change", ["", "temperature", "cap"])
@pytest.mark.parametrize("kind", ["", *SHARED_OUT])
def test_gradients_past_the_caches_have_the_same_bits(kind, change):
    """Gradients of 16 MB and more are written with streaming stores, except accurate entries."""
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (900, 5003)).astype(np.float32)
    leaders = rng.integers(0, 5003, 900)
    logits[np.arange(900), leaders] += 30
    target = np.where(rng.random(900) < 0.5, leaders, rng.integers(0, 5003, 900))
    target, options = shared_out(kind, logits, target)
    options |= CHANGES.get(change, {})
    whole = both(logits, target, reduction="none", **options)
    parts = [
        both(logits[i : i + 300], target[i : i + 300], reduction="none", **options)
        for i in range(0, 900, 300)
    ]
    for got, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert np.concatenate(got).tobytes() == expected.tobytes()


@pytest.mark.parametrize("cotangent", [1e-44, 1e-30, 1e30])
def test_cotangents_at_the_ends_of_the_range(cotangent):
    logits = np.array([[0.0, 1.0, -2.0]], np.float32)
    seed = np.float32(cotangent)
    truth = oracle.cross_entropy(logits, np.array([1]), cotangent=np.asarray(seed))
    _, gradient = both(logits, [1], cotangent=seed)
    tolerance = 2 * np.finfo(np.float32).eps * np.abs(truth.gradient) + 1.5e-45
    assert np.all(np.abs(gradient.astype(np.longdouble) - truth.gradient) <= tolerance)


def test_memory_layouts_of_arrays():
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (33, 40)).astype(np.float32)
    target = rng.integers(0, 40, 33)
    expected = digest(both(logits, target))
    buffer = np.empty(logits.nbytes + 1, np.uint8)
    misaligned = buffer[1:].view(np.float32).reshape(logits.shape)
    misaligned[...] = logits
    assert not misaligned.flags.aligned
    read_only = logits.copy()
    read_only.flags.writeable = False
    sparse = np.zeros((66, 120), np.float32)
    sparse[::2, ::3] = logits
    records = np.zeros((33, 40), [("skip", np.int8), ("x", np.float32)])
    records["x"] = logits
    for variant in (
        misaligned,
        read_only,
        sparse[::2, ::3],
        records["x"],
        logits.astype(logits.dtype.newbyteorder()),
        logits[::-1].copy()[::-1],
        np.asfortranarray(logits),
    ):
        assert digest(both(variant, target)) == expected
        # Again with a copy: the cache for one array must not be used for another.
        assert digest(both(variant.copy(), target)) == expected
    strided = np.repeat(target, 2)[::2]
    for variant in (strided, target.astype(np.uint8), target.astype(">i4"), list(target)):
        assert digest(both(logits, variant)) == expected


def test_arguments_are_left_alone():
    for seed in range(12):
        logits, target, options, cotangent = problem(seed)
        before = [a.tobytes() for a in (logits, target, cotangent)]
        both(logits, target, cotangent=cotangent, **options)
        assert [a.tobytes() for a in (logits, target, cotangent)] == before


def test_threads_of_python_at_once():
    expected = digest(both(*wide()))
    found = []
    workers = [
        threading.Thread(target=lambda: found.extend(digest(both(*wide())) for _ in range(5)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [expected] * 20


FORK = """
import multiprocessing
import test_kernel
expected = test_kernel.digest(test_kernel.both(*test_kernel.wide()))
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(test_kernel.again, range(4)).get(timeout=60)
print(found == [expected] * 4)
"""


def again(_):
    """Digest of a wide problem, in another process."""
    return digest(both(*wide()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="cannot fork")
def test_a_forked_child_starts_new_threads():
    """The parent's threads do not exist in the child, which must not wait for them."""
    assert run(FORK, XENTX_NUM_THREADS="3", PYTHONWARNINGS="ignore") == ["True"]


@pytest.fixture
def kept_memory():
    """Memory that is kept for gradients, with a limit of 8 MB."""
    xentx_numpy.reuse_memory(8 << 20)
    yield _memory._free  # noqa: SLF001 -- there is no public access to it
    xentx_numpy.reuse_memory(0)
    assert not _memory._free  # noqa: SLF001


def test_memory_is_reused_when_no_array_refers_to_it(kept_memory):
    logits = np.zeros((512, 1024), np.float32)
    target = np.zeros(512, np.int64)
    _, gradient = both(logits, target)
    view = gradient[3:]
    expected = view.copy()
    address = gradient.ctypes.data
    del gradient
    assert not kept_memory  # the view still refers to it
    _, other = both(logits + 1, target + 1)
    assert other.ctypes.data != address
    np.testing.assert_array_equal(view, expected)
    del view
    assert list(kept_memory) == [address]
    _, again = both(logits, target)
    assert again.ctypes.data == address
    np.testing.assert_array_equal(again[3:], expected)


def test_no_more_memory_is_kept_than_the_limit(kept_memory):
    gradients = [both(np.zeros((512, 1024), np.float32), np.zeros(512, int))[1] for _ in range(6)]
    del gradients
    assert sum(memory.nbytes for memory in kept_memory.values()) == 8 << 20
    with pytest.raises(ValueError, match="most: got -1; expected a number of bytes"):
        xentx_numpy.reuse_memory(-1)
