"""The kernel as primitives of JAX, with every transformation, against the portable core.

The tests call `solve` instead of public functions, since these choose between the two engines.
"""

import functools
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import xentx
from xentx import _evaluate, _validation
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import log_softmax as _log_softmax
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem

if "jax" not in requested_frameworks():
    pytest.skip("JAX is not requested", allow_module_level=True)

import jax
import jax.export
import jax.numpy as jnp

from xentx_jax import BACKEND, _lowering
from xentx_jax import _kernel as adapter
from xentx_jax.testing import enable_x64

if adapter.unusable():
    pytest.skip("no kernel for this JAX", allow_module_level=True)

VALUE_UNITS = 6
GRADIENT_UNITS = 12


def solve(problem):
    """Value from the kernel."""
    return _evaluate.value(problem)


def solve_portably(problem):
    """Value from the portable core."""
    return _evaluate.portable(*problem)


def cross_entropy_problem(logits, target, **options):
    defaults = {
        "axis": -1,
        "weight": None,
        "ignore_index": -100,
        "reduction": "mean",
    }
    return _validation.rowwise(BACKEND, _cross_entropy, logits, target, **{**defaults, **options})


def cross_entropy(logits, target, *, by=solve, **options):
    return by(cross_entropy_problem(logits, target, **options))


def log_softmax(logits, axis=-1, by=solve):
    return by(
        _validation.elementwise(BACKEND, _log_softmax, logits, axis=axis, precision="default")
    )


reference = functools.partial(cross_entropy, by=solve_portably)

RNG = np.random.default_rng(RNG_SEED)
LOGITS = RNG.normal(0, 2, (4, 5))
LOGITS[0, :2] = 3.0  # tied maxima
TARGET = np.array([1, 2, 0, -100])
SOFT = RNG.gamma(1.0, size=(4, 5))
WEIGHT = RNG.uniform(0.5, 2, 5)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, 4)


def calls(function, *arrays):
    """Number of calls of the kernel in the compiled function."""
    return jax.jit(function).lower(*arrays).as_text().count("@xentx(")


def assert_bits(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert a.dtype == b.dtype


def assert_near(actual, expected, rtol=1e-5, atol=1e-6):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        wide = (np.asarray(x).astype(np.float64) for x in (a, b))
        np.testing.assert_allclose(*wide, rtol=rtol, atol=atol)


def pulled(logits, target, cotangent, **options):
    """Value and gradient for a cotangent."""
    value, pull = jax.vjp(lambda x: cross_entropy(x, target, **options), logits)
    return value, pull(cotangent)[0]


def check_truth(problem, wrap):
    """Compare with true values for the cotangent and for ones."""
    logits, target, options, cotangent = problem
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    static = {k: v for k, v in options.items() if k not in arrays}
    function = wrap(functools.partial(pulled, **static))
    for seed in (cotangent, np.ones_like(cotangent)):
        value, gradient = function(*map(jnp.asarray, (logits, target, seed)), **arrays)
        value, gradient = np.asarray(value), np.asarray(gradient)
        truth = oracle.cross_entropy(logits, target, **options, cotangent=seed)
        assert value.dtype == gradient.dtype == logits.dtype
        oracle.assert_within(value, truth.value, truth.value_scale, VALUE_UNITS)
        oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, GRADIENT_UNITS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, soft, reduction):
    rng = np.random.default_rng(RNG_SEED)
    problem = draw_problem(
        rng, (6, 5), 1, np.float32, soft=soft, reduction=reduction, options=options
    )
    check_truth(problem, jax.jit)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("dtype", oracle.DTYPES.values(), ids=oracle.DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_dtypes(dtype, reduction, wrap):
    rng = np.random.default_rng(RNG_SEED)
    options = {"weight": True, "label_smoothing": 0.1, "ignore": True}
    with enable_x64(dtype == np.float64):
        for soft in (False, True):
            problem = draw_problem(
                rng, (20, 7), -1, dtype, soft=soft, reduction=reduction, options=options
            )
            check_truth(problem, wrap)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_axes(axis):
    rng = np.random.default_rng(RNG_SEED)
    options = {"weight": True, "sample_weight": True}
    for soft in (False, True):
        for reduction in ("none", "mean"):
            problem = draw_problem(
                rng, (2, 3, 4, 5), axis, np.float32, soft=soft, reduction=reduction, options=options
            )
            check_truth(problem, jax.jit)


def test_one_row():
    problem = draw_problem(
        np.random.default_rng(1), (5,), 0, np.float32, soft=False, reduction="none", options={}
    )
    check_truth(problem, jax.jit)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_no_rows(shape):
    logits, target = jnp.zeros(shape), jnp.zeros(shape[:-1], int)
    for reduction in REDUCTIONS:
        value, gradient = jax.vjp(
            lambda x, r=reduction: cross_entropy(x, target, reduction=r), logits
        )
        assert_bits(value, reference(logits, target, reduction=reduction))
        assert gradient(jnp.ones_like(value))[0].shape == shape
    assert log_softmax(logits).shape == shape


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_index_dtypes(dtype):
    with enable_x64():
        target = jnp.asarray(TARGET, dtype)
        logits = jnp.asarray(LOGITS, jnp.float32)
        assert calls(cross_entropy, logits, target) == 1
        assert_near(cross_entropy(logits, target), reference(logits, target))


def test_row_out_of_range_is_nan():
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.array([1, 5, -1, -100])
    value, gradient = jax.jit(functools.partial(pulled, reduction="none"))(
        logits, target, jnp.ones(4)
    )
    assert np.array_equal(np.isnan(value), [False, True, True, False])
    assert np.array_equal(np.isnan(gradient).all(1), [False, True, True, False])
    assert value[3] == 0
    assert np.all(gradient[3] == 0)


@pytest.mark.parametrize("dtype", oracle.DTYPES.values(), ids=oracle.DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_log_softmax(dtype, axis):
    with enable_x64(dtype == np.float64):
        logits, seed = jnp.asarray(LOGITS, dtype), jnp.asarray(SOFT, dtype)
        rtol = 4 * oracle.epsilon(dtype)

        def both(x, g, by):
            value, pull = jax.vjp(lambda x: log_softmax(x, axis, by), x)
            return value, pull(g)[0]

        ours = functools.partial(both, by=solve)
        assert calls(ours, logits, seed) == 2
        assert_near(jax.jit(ours)(logits, seed), both(logits, seed, solve_portably), rtol, 8 * rtol)
        assert_bits(jax.jit(ours)(logits, seed), ours(logits, seed))
        stacked = (jnp.stack([a, 2 * a, -a], 2) for a in (logits, seed))
        mapped = jax.vmap(ours, 2, 2)(*stacked)
        assert_bits([x[..., 1] for x in mapped], ours(2 * logits, 2 * seed))


# Transformations. Each converts a loss of the logits to another function of the logits.


def scales(x):
    return jnp.arange(1.0, 4.0, dtype=x.dtype)


def pulled_back(loss, *seeds):
    def function(x):
        pull = jax.vjp(loss, x)[1]
        return [pull(jnp.asarray(seed, x.dtype)) for seed in seeds]

    return function


def scanned(loss):
    def total(x):
        def body(carry, scale):
            return carry + loss(scale * x), None

        return jax.lax.scan(body, jnp.zeros((), x.dtype), scales(x))[0]

    return jax.grad(total)


def third_order(loss):
    def squared(function):
        return lambda x: jnp.sum(jax.grad(function)(x) ** 2)

    return jax.grad(squared(squared(loss)))


TRANSFORMATIONS = {
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "grad of a multiple": lambda f: jax.grad(lambda x: 3.5 * f(x)),
    "grad of a function": lambda f: jax.grad(lambda x: jnp.exp(f(x)) + f(x)),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),)),
    "vjp": lambda f: pulled_back(f, 0.3),
    "vjp, twice": lambda f: pulled_back(f, 1.0, 2.0),
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](jnp.cos(x)),
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "jacrev of jacrev": lambda f: jax.jacrev(jax.jacrev(f)),
    "jacfwd of jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.sin(x),)),
    "reverse over reverse": lambda f: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), jnp.sin(x))),
    "third order": third_order,
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "checkpoint of a chain": lambda f: jax.grad(jax.checkpoint(lambda x: jnp.sin(f(jnp.sin(x))))),
    "scan": scanned,
    "cond": lambda f: jax.grad(lambda x: jax.lax.cond(x[0, 0] > 0, f, lambda x: 2 * f(x), x)),
    "loop": lambda f: lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x - jax.grad(f)(x), x),
    "jit inside": lambda f: jax.grad(jax.jit(f)),
    "vmap": lambda f: lambda x: jax.vmap(lambda s: f(s * x))(scales(x)),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(lambda s: f(s * x))(scales(x)).mean()),
    "vmap of grad": lambda f: lambda x: jax.vmap(lambda s: jax.grad(f)(s * x))(scales(x)),
}


EAGER = ("value_and_grad", "grad of a multiple", "jvp", "vjp, twice", "hessian", "grad of vmap")


@pytest.mark.parametrize(
    ("name", "wrap", "target"),
    [(name, jax.jit, (TARGET, SOFT)[i % 2]) for i, name in enumerate(TRANSFORMATIONS)]
    + [(name, lambda f: f, TARGET) for name in EAGER],
    ids=[*TRANSFORMATIONS, *(f"{name}, eager" for name in EAGER)],
)
def test_transformations(name, wrap, target):
    with enable_x64():
        target = jnp.asarray(target)
        options = {
            "weight": WEIGHT,
            "label_smoothing": 0.1,
            "z_loss": 0.05,
            "logit_softcap": 6.0,
            "temperature": 1.5,
        }
        ours, core = (
            TRANSFORMATIONS[name](lambda x, f=f: f(x, target, **options))
            for f in (cross_entropy, reference)
        )
        logits = jnp.asarray(LOGITS)
        assert_near(wrap(ours)(logits), jax.jit(core)(logits), 1e-11, 1e-12)


def row_stats(logits, target, *, by=_evaluate.row_stats, **options):
    """Weighted sum of the fields that have derivatives."""
    fields = by(cross_entropy_problem(logits, target, reduction="none", **options))[:4]
    return sum(jnp.vdot(f, seed) for f, seed in zip(fields, SEEDS, strict=True))


def portable_row_stats(problem):
    return _evaluate.portable_row_stats(*problem)


SEEDS = RNG.normal(size=(4, 4))


@pytest.mark.parametrize(
    ("name", "wrap", "target"),
    [(name, jax.jit, (TARGET, SOFT)[i % 2]) for i, name in enumerate(TRANSFORMATIONS)]
    + [(name, lambda f: f, TARGET) for name in EAGER],
    ids=[*TRANSFORMATIONS, *(f"{name}, eager" for name in EAGER)],
)
def test_row_statistics(name, wrap, target):
    with enable_x64():
        target = jnp.asarray(target)
        options = {"weight": jnp.asarray(WEIGHT), "label_smoothing": 0.1, "z_loss": 0.05}
        ours, core = (
            TRANSFORMATIONS[name](lambda x, by=by: row_stats(x, target, by=by, **options))
            for by in (_evaluate.row_stats, portable_row_stats)
        )
        logits = jnp.asarray(LOGITS)
        assert_near(wrap(ours)(logits), jax.jit(core)(logits), 1e-11, 1e-12)


def test_row_statistics_by_every_array():
    def by_all(by):
        function = functools.partial(row_stats, by=by)
        arrays = [jnp.asarray(a, jnp.float32) for a in (LOGITS, SOFT, WEIGHT)]
        tangents = [jnp.sin(a) for a in arrays]

        def of(x, y, w):
            return function(x, y, weight=w)

        reverse = jax.jit(jax.grad(of, (0, 1, 2)))
        return reverse(*arrays), jax.jvp(reverse, arrays, tangents)

    assert_near(by_all(_evaluate.row_stats), by_all(portable_row_stats), 1e-4, 1e-4)


def test_calls_of_row_statistics():
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)
    assert calls(row_stats, logits, target) == 1
    assert calls(jax.value_and_grad(row_stats), logits, target) == 2
    index = jnp.argmax(logits, -1)
    for function in (xentx.per_row, jax.jit(xentx.per_row)):
        stats = function(logits, target)
        assert stats.prediction.dtype == index.dtype
        np.testing.assert_array_equal(stats.prediction, jnp.where(target == -100, 0, index))
    with enable_x64():
        assert jax.jit(xentx.per_row)(logits, target).prediction.dtype == jnp.int64


@pytest.mark.parametrize(
    ("soft", "reduction"),
    [(False, "mean"), (True, "none"), (True, "mean"), (True, "weighted_mean")],
)
def test_by_every_array(soft, reduction):
    """Derivatives with respect to targets and weights, in reverse and forward-over-reverse mode."""
    with enable_x64():
        arrays = [jnp.asarray(a) for a in (LOGITS, WEIGHT, SAMPLE_WEIGHT)]
        arrays += [jnp.asarray(SOFT)] if soft else []
        arrays += [jnp.asarray(3.5)] if reduction == "mean" else []

        def loss(function, arrays):
            arrays = list(arrays)
            normalizer = arrays.pop() if reduction == "mean" else None
            target = arrays.pop() if soft else jnp.asarray(TARGET)
            logits, weight, sample_weight = arrays
            return function(
                logits,
                target,
                weight=weight,
                sample_weight=sample_weight,
                normalizer=normalizer,
                reduction=reduction,
                label_smoothing=0.1,
            ).sum()

        def derivatives(function):
            gradient = jax.grad(functools.partial(loss, function))
            return jax.jit(lambda x: jax.jvp(gradient, (x,), (jax.tree.map(jnp.sin, x),)))

        ours, core = map(derivatives, (cross_entropy, reference))
        assert_near(ours(arrays), core(arrays), 1e-10, 1e-12)


def test_log_softmax_to_second_order():
    with enable_x64():
        logits = jnp.asarray(LOGITS)
        for transform in (jax.jacfwd, jax.hessian):
            ours, core = (
                jax.jit(transform(lambda x, by=by: jnp.sin(log_softmax(x, 1, by)).sum(0)))
                for by in (solve, solve_portably)
            )
            assert_near(ours(logits), core(logits), 1e-11, 1e-12)


# Number and arguments of the calls of the kernel.


def test_what_is_compiled():
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)

    def loss(x):
        return cross_entropy(x, target)

    def text(function, *arrays):
        return jax.jit(function).lower(*arrays).as_text()

    assert text(loss, logits).count("@xentx(") == 1
    for transform in (jax.grad, jax.value_and_grad):
        program = text(transform(loss), logits)
        assert program.count("@xentx(") == 1  # a cotangent of 1 needs no pullback
        assert program.count("wanted = 3") == 1
    program = text(jax.grad(lambda x: 3 * loss(x)), logits)
    assert program.count("@xentx(") == 2
    assert program.count("output_operand_alias<") == 1
    program = text(lambda x, v: jax.jvp(loss, (x,), (v,)), logits, logits)
    assert program.count("@xentx(") == 1
    assert program.count("wanted = 1") == 1  # forward mode needs no gradient
    rows = functools.partial(cross_entropy, target=target, reduction="none")
    program = text(lambda x, u: jax.vjp(rows, x)[1](u), logits, jnp.ones(4))
    assert program.count("@xentx(") == 1
    assert program.count("wanted = 2") == 1  # the value is not used
    chain = jax.checkpoint(lambda x: jnp.sin(loss(x)))
    assert text(jax.grad(chain), logits).count("wanted = 3") == 0


def test_other_platforms():
    """Programs for other devices and exported programs do not call the kernel."""
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)
    step = jax.jit(jax.value_and_grad(cross_entropy))
    traced = step.trace(logits, target)
    for platform in ("cuda", "tpu"):
        assert "@xentx(" not in traced.lower(lowering_platforms=(platform,)).as_text()
    exported = jax.export.export(step)(logits, target)
    assert_near(exported.call(logits, target), step(logits, target))
    (rows,) = jax.export.symbolic_shape("rows")
    shapes = (jax.ShapeDtypeStruct((rows, 5), "float32"), jax.ShapeDtypeStruct((rows,), "int32"))
    rows_of = jax.jit(functools.partial(cross_entropy, reduction="none"))
    exported = jax.export.export(rows_of)(*shapes)
    assert_near(exported.call(logits, target), rows_of(logits, target))


def test_ahead_of_time():
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)
    step = jax.jit(jax.value_and_grad(cross_entropy))
    compiled = step.lower(
        jax.ShapeDtypeStruct(logits.shape, logits.dtype),
        jax.ShapeDtypeStruct(target.shape, target.dtype),
    ).compile()
    assert_bits(compiled(logits, target), step(logits, target))
    assert jax.eval_shape(step, logits, target)[1].shape == logits.shape


def test_memory():
    """The gradient is written into the output, without temporary memory of its size."""
    logits, target = jnp.zeros((64, 1000)), jnp.zeros(64, int)
    for function in (cross_entropy, lambda x, t: 2 * cross_entropy(x, t)):
        compiled = jax.jit(jax.value_and_grad(function)).lower(logits, target).compile()
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < logits.nbytes / 20
        assert memory.output_size_in_bytes < 1.05 * logits.nbytes


def test_donated_logits():
    logits, target = np.float32(LOGITS), jnp.asarray(TARGET)
    step = jax.jit(jax.value_and_grad(cross_entropy), donate_argnums=0)
    expected = jax.value_and_grad(cross_entropy)(jnp.asarray(logits), target)
    assert_bits(step(jnp.array(logits), target), expected)

    @functools.partial(jax.jit, donate_argnums=0)
    def descend(x):
        return x - jax.grad(lambda x: 2 * cross_entropy(x, target))(x)

    x = jnp.array(logits)
    gradient = jax.grad(lambda x: 2 * cross_entropy(x, target))(jnp.asarray(logits))
    assert_near(descend(x), jnp.asarray(logits) - gradient)
    assert x.is_deleted()


def test_arguments_stay_as_they_are():
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)
    before = np.array(logits)
    _, pull = jax.vjp(lambda x: cross_entropy(x, target), logits)
    one, half = (pull(jnp.float32(u))[0] for u in (1, 0.5))
    again = np.array(pull(jnp.float32(1))[0])
    assert np.array_equal(logits, before)
    assert np.array_equal(one, again)
    np.testing.assert_allclose(half, one / 2, rtol=1e-6)


def test_modes_agree_in_every_bit():
    """Eager and compiled, with a stored and with a recomputed gradient."""
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)
    for seed in (1.0, 0.37, 3e-5):
        u = jnp.float32(seed)
        expected = pulled(logits, target, u)
        assert_bits(jax.jit(pulled)(logits, target, u), expected)
        recomputed = jax.vjp(jax.checkpoint(lambda x: cross_entropy(x, target)), logits)[1](u)
        assert_bits(recomputed, expected[1:])


@pytest.mark.parametrize("dtype", oracle.DTYPES.values(), ids=oracle.DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_bits_as_numpy(dtype, reduction):
    """The bits are NumPy's, also if value and gradient are computed together."""
    rng = np.random.default_rng(RNG_SEED)

    def beside(x, t, w, u=None):
        problem = cross_entropy_problem(x, t, weight=w, reduction=reduction)
        return adapter.solve_with_gradient(*problem, u)

    def pulled_back(x, t, w, u=None):
        value, pull = jax.vjp(lambda x: cross_entropy(x, t, weight=w, reduction=reduction), x)
        return value, pull(jnp.ones_like(value) if u is None else u)[0]

    with enable_x64(dtype == np.float64):
        for soft in (False, True):
            logits, target, options, seed = draw_problem(
                rng, (40, 33), 1, dtype, soft=soft, reduction=reduction, options={"weight": True}
            )
            arrays = (logits, target, options["weight"])
            for seeds in ((), (seed,)):
                expected = xentx.value_and_grad(xentx.cross_entropy)(
                    logits, target, **options, cotangent=seeds[0] if seeds else None
                )
                converted = tuple(map(jnp.asarray, (*arrays, *seeds)))
                for function in (beside, pulled_back):
                    assert_bits(jax.jit(function)(*converted), expected)
                    assert_bits(function(*converted), expected)


def test_value_and_gradient_together():
    """Value and gradient together are differentiable, and need one call of the kernel."""
    with enable_x64():
        target, seed = jnp.asarray(TARGET), jnp.asarray([1.0, 2.0, 3.0, 4.0])

        def beside(x, u, solve=adapter.solve_with_gradient):
            return solve(*cross_entropy_problem(x, target, reduction="none"), u)

        core = functools.partial(beside, solve=_evaluate.portable_with_gradient)
        arrays = (jnp.asarray(LOGITS), seed)
        assert calls(beside, *arrays) == 1
        for ours, reference in zip(
            jax.jit(jax.jacrev(beside, (0, 1)))(*arrays),
            jax.jit(jax.jacrev(core, (0, 1)))(*arrays),
            strict=True,
        ):
            assert_near(ours, reference, 1e-11, 1e-12)
        mapped = jax.vmap(beside, (0, None))(jnp.stack([arrays[0], 2 * arrays[0]]), seed)
        assert_bits([a[1] for a in mapped], beside(2 * arrays[0], seed))


def test_wrong_index_is_an_error():
    logits = jnp.zeros((2, 3))
    for function in (cross_entropy, jax.grad(cross_entropy)):
        with pytest.raises(IndexError, match="got 3 at position 1; expected 0 <= target < 3"):
            function(logits, jnp.array([0, 3]))
        with pytest.raises(IndexError, match="got -1 at position 0"):
            function(logits, jnp.array([-1, 0]))
    target = jnp.array([0, 3])
    with pytest.raises(IndexError, match="got 3"):
        jax.jit(lambda x: cross_entropy(x, target))(logits)


def test_what_it_declines():
    logits = jnp.zeros((2, 3))
    assert adapter.declines(logits) is None
    assert jax.jit(lambda x: x + (adapter.declines(x) is None))(logits)[0, 0] == 1
    seen = []

    def look(x):
        seen.append(xentx.backend_of(x).reason)
        return x

    (size,) = jax.export.symbolic_shape("b")
    jax.export.export(jax.jit(look))(jax.ShapeDtypeStruct((size, 3), jnp.float32))
    assert seen == ["the array has the symbolic shape (b, 3); the CPU kernel takes known sizes"]
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    explicit = jax.device_put(logits, jax.NamedSharding(mesh, jax.P("x")))
    assert xentx.backend_of(explicit).reason.startswith("the array's sharding is explicit")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OLDEST_JAX", (99, 1), "is older than 99.1, the oldest that can call the CPU kernel"),
        ("_running_api_version", lambda: (0, 0), "has version 0.0 where the CPU kernel was"),
        ("_running_api_version", lambda: None, "has no FFI that is known where the CPU kernel"),
    ],
)
def test_versions_of_jax_that_the_kernel_does_not_serve(name, value, reason, monkeypatch):
    logits, target = jnp.asarray([[0.0, 1.0]]), jnp.asarray([0])
    expected = cross_entropy(logits, target)
    monkeypatch.setattr(_lowering, name, value)
    monkeypatch.setattr(adapter, "unusable", adapter.unusable.__wrapped__)
    for info in (xentx.backend_of(logits), xentx.backends()[2]):
        assert info.engine == "portable"
        assert f"JAX {jax.__version__} {reason}" in info.reason
    text = str(jax.make_jaxpr(lambda x: cross_entropy(x, target))(logits))
    assert "xentx_loss" not in text
    np.testing.assert_allclose(cross_entropy(logits, target), expected, rtol=1e-6)


def test_debugging_modes():
    logits, target = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGET)
    expected = jax.value_and_grad(cross_entropy)(logits, target)
    with jax.disable_jit():
        assert_bits(jax.value_and_grad(cross_entropy)(logits, target), expected)
    with jax.debug_nans(True):
        for function in (cross_entropy, jax.jit(cross_entropy)):
            with pytest.raises(FloatingPointError):
                function(logits.at[0, 0].set(jnp.nan), target)
    with jax.checking_leaks():
        assert_bits(jax.value_and_grad(cross_entropy)(logits, target), expected)
    with jax.enable_checks(True):
        assert_near(jax.jit(jax.hessian(cross_entropy))(logits, target).sum(), jnp.float32(0))


# vmap.


def taken(n, axes, arrays):
    return [a if i is None else jnp.take(a, n, i) for a, i in zip(arrays, axes, strict=True)]


def mapped_in_turn(function, axes, *arrays):
    size = next(a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None)
    results = [function(*taken(n, axes, arrays)) for n in range(size)]
    return jax.tree.map(lambda *x: jnp.stack(x), *results)


BATCH = {
    "logits": (0, None, None, None),
    "target": (None, 0, None, None),
    "weight": (None, None, 0, None),
    "all": (0, 0, 0, 0),
    "last axes": (2, 1, 1, None),
    "logits and target": (1, 0, None, None),
}


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("axes", BATCH.values(), ids=BATCH)
def test_vmap_changes_no_bit(axes, soft, wrap):
    rng = np.random.default_rng(RNG_SEED)

    def draw(i, *shape):
        return np.insert(shape, axes[i], 3) if axes[i] is not None else shape

    logits = jnp.asarray(rng.normal(0, 3, draw(0, 4, 5)), jnp.float32)
    if soft and axes[1] is not None:
        axes = (axes[0], 0, *axes[2:])
    if soft:
        target = jnp.asarray(rng.gamma(1.0, size=draw(1, 4, 5)), jnp.float32)
    else:
        target = jnp.asarray(rng.integers(0, 5, draw(1, 4)), jnp.int32)
    weight = jnp.asarray(rng.uniform(0.5, 2, draw(2, 5)), jnp.float32)
    sample_weight = jnp.asarray(rng.uniform(0.5, 2, draw(3, 4)), jnp.float32)
    arrays = (logits, target, weight, sample_weight)

    def loss(x, t, w, s, reduction="mean"):
        return cross_entropy(x, t, weight=w, sample_weight=s, reduction=reduction)

    def scaled(x, t, w, s):
        return 0.7 * loss(x, t, w, s)

    def rows(x, t, w, s):
        value, pull = jax.vjp(lambda x: loss(x, t, w, s, "none"), x)
        return value, pull(jnp.arange(4.0, dtype=jnp.float32))

    for function in (loss, jax.value_and_grad(loss), jax.grad(scaled), rows):
        mapped = wrap(jax.vmap(function, axes))
        assert calls(mapped, *arrays) == calls(function, *taken(0, axes, arrays))
        assert_bits(mapped(*arrays), mapped_in_turn(jax.jit(function), axes, *arrays))


def test_vmap_with_axis_of_classes_first():
    logits = jnp.asarray(RNG.normal(size=(5, 3, 2, 4)), jnp.float32)
    target = jnp.asarray(RNG.integers(0, 5, (2, 4, 3)), jnp.int32)

    def step(x, t):
        return jax.value_and_grad(lambda x: cross_entropy(x, t, axis=0, label_smoothing=0.1))(x)

    ours = jax.jit(jax.vmap(step, (1, 2)))(logits, target)
    assert_bits(ours, mapped_in_turn(jax.jit(step), (1, 2), logits, target))


def test_nested_vmap():
    logits = jnp.asarray(RNG.normal(size=(2, 3, 4, 5)), jnp.float32)
    target = jnp.asarray(RNG.integers(0, 5, (3, 4)), jnp.int32)
    weight = jnp.asarray(RNG.uniform(0.5, 2, (2, 5)), jnp.float32)

    def step(x, t, w):
        return jax.value_and_grad(lambda x: cross_entropy(x, t, weight=w))(x)

    inner = jax.vmap(step, (0, 0, None))
    outer = jax.jit(jax.vmap(inner, (0, None, 0)))
    assert calls(outer, logits, target, weight) == 1
    ours = outer(logits, target, weight)
    for i in range(2):
        for j in range(3):
            expected = jax.jit(step)(logits[i, j], target[j], weight[i])
            assert_bits(jax.tree.map(lambda a, i=i, j=j: a[i, j], ours), expected)


def test_gradient_of_mapped_losses():
    """The mean of mapped losses of single examples, and its derivatives."""
    with enable_x64():
        logits, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)

        def mean(function, x, scale):
            losses = jax.vmap(lambda x, t, s: function(s * x, t, reduction="sum"))(x, target, scale)
            return jnp.mean(losses**2)

        scale = jnp.arange(1.0, 5.0)
        for transform in (jax.grad, jax.hessian):
            ours, core = (
                jax.jit(transform(functools.partial(mean, f), argnums=(0, 1)))
                for f in (cross_entropy, reference)
            )
            assert_near(ours(logits, scale), core(logits, scale), 1e-11, 1e-12)


def test_vmap_over_nothing():
    step = jax.jit(jax.vmap(jax.value_and_grad(cross_entropy)))
    value, gradient = step(jnp.zeros((0, 4, 5)), jnp.zeros((0, 4), int))
    assert value.shape == (0,)
    assert gradient.shape == (0, 4, 5)


# Threads, devices and versions.


def test_two_threads():
    """Several threads call the kernel, which uses XLA's thread pool."""
    rng = np.random.default_rng(RNG_SEED)
    logits, target = rng.normal(size=(2, 200, 999)), rng.integers(0, 999, (2, 200))
    arrays = [(jnp.asarray(logits[i], jnp.float32), jnp.asarray(target[i])) for i in range(2)]
    step = jax.jit(jax.value_and_grad(cross_entropy))
    expected = [jax.block_until_ready(step(*a)) for a in arrays]
    failures = []

    def work(i):
        for _ in range(20):
            try:
                assert_bits(step(*arrays[i]), expected[i])
            except BaseException as failure:  # noqa: BLE001
                failures.append(failure)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_without_threads():
    """The kernel works if XLA has no thread pool."""
    run(
        """
    import jax, jax.numpy as jnp, numpy as np
    import test_jax
    x, t = jnp.full((300, 1000), 0.5), jnp.zeros(300, int)
    value, gradient = jax.jit(jax.value_and_grad(test_jax.cross_entropy))(x, t)
    assert abs(value - 6.9077554) < 1e-6, value
    assert abs(np.asarray(gradient, "float64").sum()) < 1e-6
    """,
        XLA_FLAGS="--xla_cpu_multi_thread_eigen=false",
    )


def run(program, **environment):
    """Run a program in a new interpreter that can import this module."""
    path = [str(Path(__file__).parent), *sys.path]
    head = f"import sys; sys.path[:0] = {path!r}\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", head + textwrap.dedent(program)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


DEVICES = """
    import functools, math, re
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    import test_jax
    from test_jax import *
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)
    t = jnp.asarray(rng.integers(0, 32, 16), jnp.int32)
    w = jnp.asarray(rng.uniform(1, 2, 32), jnp.float32)
    assert jax.device_count() == 4
    def loss(x, w, t):
        return cross_entropy(x, t, weight=w)
    step = jax.value_and_grad(loss, argnums=(0, 1))
    expected = step(x, w, t)
"""


def test_sharded_arrays():
    """XLA partitions the portable core. With the kernel it would have to gather the rows."""
    run(
        DEVICES
        + """
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for spec in (P("data"), P(None, "data"), P()):
        xs = jax.device_put(x, NamedSharding(mesh, spec))
        ts = jax.device_put(t, NamedSharding(mesh, P(*spec[:1])))
        ws = jax.device_put(w, NamedSharding(mesh, P()))
        for function in (step, jax.jit(step)):
            assert_near(function(xs, ws, ts), expected)
        compiled = jax.jit(step).lower(xs, ws, ts).compile().as_text()
        # Of a sum, one number comes from each device, and nothing else.
        gathered = re.findall(r"= f32\\[([0-9,]*)\\]\\S* all-gather\\(", compiled)
        assert all(math.prod(map(int, shape.split(","))) <= 4 for shape in gathered), gathered
        assert "collective-permute" not in compiled
        if spec == P("data"):
            assert gathered
            assert jax.jit(step)(xs, ws, ts)[1][0].sharding.is_equivalent_to(xs.sharding, 2)
    # An array on one device of several is whole.
    one = [jax.device_put(a, jax.devices()[2]) for a in (x, w, t)]
    assert jax.jit(step).lower(*one).as_text().count("@xentx(") == 1
    assert_near(jax.jit(step)(*one), expected)
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="JAX < 0.7.1 has another name for it")
def test_explicit_mesh():
    run(
        DEVICES
        + """
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    q = jax.nn.softmax(x[::-1])
    soft = jax.value_and_grad(lambda x, q: cross_entropy(x, q), argnums=(0, 1))
    wanted = soft(x, q)
    for x64 in (False, True):
        with jax.set_mesh(mesh), enable_x64(x64):
            for spec in (P("data"), P()):
                xs, qs = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, q))
                ts = jax.device_put(t, NamedSharding(mesh, P(*spec[:1])))
                ws = jax.device_put(w, NamedSharding(mesh, P()))
                assert_near(jax.jit(step)(xs, ws, ts), expected)
                assert_near(jax.jit(soft)(xs, qs), wanted)
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


def test_shard_map():
    run(
        DEVICES
        + """
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for check in (True, False):
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P(),
            check_vma=check,
        )
        def mean(x, w, t):
            both = cross_entropy(x, t, weight=w, reduction="sum"), jnp.sum(w[t])
            return jax.lax.psum(both[0], "data") / jax.lax.psum(both[1], "data")
        sharded = jax.value_and_grad(mean, argnums=(0, 1))
        assert jax.jit(sharded).lower(x, w, t).as_text().count("@xentx(") == 2
        assert_near(jax.jit(sharded)(x, w, t), expected)
        assert_near(mean(x, w, t), expected[0])
    h = jax.jit(jax.jacfwd(jax.grad(mean)))(x, w, t)
    assert_near(h, jax.jit(jax.hessian(functools.partial(reference)))(x, t, weight=w))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P("data")
    )
    def inside(x, w, t):
        return jax.grad(loss)(x, w, t)
    pieces = [jax.grad(loss)(x[i:i+4], w, t[i:i+4]) for i in range(0, 16, 4)]
    assert_bits(jax.jit(inside)(x, w, t), jnp.concatenate(pieces))
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


def test_pmap():
    """More threads call the kernel at once than XLA has threads."""
    run(
        DEVICES
        + """
    x = jnp.asarray(rng.normal(size=(4, 200, 999)), jnp.float32)
    t = jnp.asarray(rng.integers(0, 999, (4, 200)), jnp.int32)
    step = jax.value_and_grad(cross_entropy)
    expected = [jax.jit(step)(x[i], t[i]) for i in range(4)]
    mapped = jax.pmap(step)
    for _ in range(20):
        value, gradient = mapped(x, t)
        for i in range(4):
            assert_bits((value[i], gradient[i]), expected[i])
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


GUARD = """
    import xentx._kernel_engine
    kernel = xentx._kernel_engine.KERNEL
    registered = []
    import jax
    register = jax.ffi.register_ffi_target
    def spy(name, handler, **options):
        registered.append(name)
        {register}
    jax.ffi.register_ffi_target = spy
    {fake}
    import jax.numpy as jnp
    from xentx import _evaluate, _validation
    from xentx._core import cross_entropy
    from xentx_jax import BACKEND
    from xentx_jax import _kernel as adapter
    def loss(x):
        return _evaluate.value(_validation.rowwise(BACKEND, cross_entropy, x, jnp.zeros(2, int),
            axis=-1, weight=None, ignore_index=-100, reduction="mean"))
    step = jax.jit(jax.value_and_grad(loss))
    value, gradient = step(jnp.zeros((2, 3)))
    assert abs(value - 1.0986123) < 1e-6, value
    assert gradient.shape == (2, 3)
    assert abs(jax.grad(loss)(jnp.zeros((2, 3))) - gradient).max() < 1e-6
    called = 'custom_call_target="xentx"' in step.lower(jnp.zeros((2, 3))).compile().as_text()
    print(len(registered), "kernel" if called else "portable")
"""
REGISTER = "return register(name, handler, **options)"


@pytest.mark.parametrize(
    ("fake", "register", "outcome"),
    [
        ("", REGISTER, "1 kernel"),
        ("kernel.xla_ffi_api_version = (0, 1000)", REGISTER, "0 portable"),
        ("kernel.xla_ffi_api_version = (1, 0)", REGISTER, "0 portable"),
        ("jax.ffi.include_dir = lambda: '/nowhere'", REGISTER, "0 portable"),
        ("xentx._kernel_engine.KERNEL = None", REGISTER, "0 portable"),
        ("", "raise ValueError(name)", "1 portable"),
    ],
    ids=["as it is", "newer kernel", "older XLA", "unknown XLA", "no kernel", "refused"],
)
def test_version_guard(fake, register, outcome):
    """If XLA might reject the kernel, it is not registered, and JAX uses the portable core."""
    assert run(GUARD.format(fake=fake, register=register)).split("\n")[-2] == outcome


def test_registered_late():
    """Nothing is registered before the CPU backend is initialized."""
    run("""
    import jax
    from jax._src import xla_bridge
    seen = []
    register = jax.ffi.register_ffi_target
    jax.ffi.register_ffi_target = lambda *a, **k: (
        seen.append(xla_bridge.backends_are_initialized()), register(*a, **k)
    )
    import jax.numpy as jnp
    import test_jax
    step = jax.jit(jax.grad(test_jax.cross_entropy))
    step.lower(jax.ShapeDtypeStruct((4, 5), "float32"), jax.ShapeDtypeStruct((4,), "int32"))
    assert seen == [True]
    """)
