"""Losses with Optax's signatures, under every transformation of JAX.

`nox -s drop_in` runs Optax's own tests on them. tests/kernel tests transformations of the functions
that they call. The tests here check the signatures and the argument `where`.
"""

import functools
import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from xentx.testing import requested_frameworks
from xentx.testing._engines import portable_core

if "jax" not in requested_frameworks():
    pytest.skip("JAX is not requested", allow_module_level=True)

import jax
import jax.numpy as jnp
import optax

import xentx_jax
from xentx_jax.testing import enable_x64

NAMES = (
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "safe_softmax_cross_entropy",
)
HARD, SOFT = "softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy"

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 3, 5)).astype(np.float32)
INDICES = RNG.integers(0, 5, (4, 3))
PROBABILITIES = RNG.dirichlet(np.ones(5), (4, 3)).astype(np.float32)
LABELS = {HARD: INDICES, SOFT: PROBABILITIES}
ROWS = RNG.random((4, 3)) > 0.4
# The mask keeps the classes of the labels: masking a label's class is tested separately.
CLASSES = (RNG.random((4, 3, 5)) > 0.4) | (np.arange(5) == INDICES[..., None])
CLASSES[0] = False


@pytest.fixture(params=["kernel", "portable"], autouse=True)
def engine(request):
    """Run each test with both engines, if this run has them."""
    backend = xentx_jax.BACKEND
    jax.clear_caches()  # functions compiled with the other engine must not be used
    if request.param == "portable":
        with portable_core(backend):
            yield request.param
    elif backend.engines:
        yield request.param
    else:
        pytest.skip("no kernel here")


def ours(name):
    return getattr(xentx_jax, name)


def assert_near(found, expected, rtol=1e-5, atol=1e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def pulled(function, logits, *args, **options):
    """Value and gradient for a non-uniform cotangent."""
    value, pull = jax.vjp(lambda x: function(x, *args, **options), jnp.asarray(logits))
    return value, pull(jnp.linspace(1, 2, value.size, dtype=value.dtype).reshape(value.shape))[0]


@pytest.mark.pinned
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_optax(name):
    mine, theirs = (inspect.signature(getattr(f, name)).parameters for f in (xentx_jax, optax))
    assert [(p.name, p.kind, p.default) for p in mine.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_optax_is_not_imported():
    program = (
        "import sys, xentx_jax; xentx_jax.softmax_cross_entropy; assert 'optax' not in sys.modules"
    )
    run(program)


# ---- values and gradients


@pytest.mark.parametrize("where", [None, ROWS, CLASSES], ids=["all", "rows", "classes"])
@pytest.mark.parametrize("name", LABELS)
def test_as_optax(name, where):
    options = {} if where is None else {"where": where}
    mine, theirs = (
        pulled(getattr(f, name), LOGITS, jnp.asarray(LABELS[name]), **options)
        for f in (xentx_jax, optax)
    )
    assert_near(mine, theirs)
    with enable_x64():
        logits = jnp.asarray(LOGITS, jnp.float64)
        mine = pulled(ours(name), logits, jnp.asarray(LABELS[name]), **options)
        assert mine[0].dtype == mine[1].dtype == jnp.float64


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 0), (-1, -2), None])
def test_axes(axis):
    axes = range(3) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    shape = tuple(n for i, n in enumerate(LOGITS.shape) if i not in {a % 3 for a in axes})
    count = LOGITS.size // int(np.prod(shape, dtype=int))
    indices, rows = RNG.integers(0, count, shape), RNG.random(shape) > 0.3
    for name, labels in ((HARD, indices), (SOFT, PROBABILITIES)):
        if axis is None and name == HARD:
            continue
        for where in (None, rows) if axis is not None else (None, CLASSES):
            mine, theirs = (
                pulled(getattr(f, name), LOGITS, jnp.asarray(labels), axis=axis, where=where)
                for f in (xentx_jax, optax)
            )
            assert_near(mine, theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LABELS)
def test_narrow_losses_have_the_dtype_of_their_logits(name, dtype):
    logits = jnp.asarray(LOGITS, dtype)
    found = ours(name)(logits, LABELS[name], where=ROWS)
    assert found.dtype == dtype
    wide = ours(name)(logits.astype("float32"), LABELS[name], where=ROWS)
    assert jnp.array_equal(found, wide.astype(dtype))


def test_labels_of_every_dtype():
    one_hot = np.eye(5, dtype=int)[INDICES]
    expected = ours(HARD)(LOGITS, INDICES)
    for dtype in (bool, "int32", "uint8", "float16", "float32"):
        assert_near(ours(SOFT)(LOGITS, jnp.asarray(one_hot, dtype)), expected)
    for dtype in ("int8", "uint8", "int32", "uint32"):
        assert_near(ours(HARD)(LOGITS, jnp.asarray(INDICES, dtype), where=ROWS), expected * ROWS)


def test_numpy_arrays_in_the_other_byte_order():
    logits, labels, mask = (
        LOGITS.astype(">f4"),
        INDICES.astype(">i8"),
        np.flip(np.flip(ROWS).copy()),
    )
    for where in (None, mask):
        assert_near(
            ours(HARD)(logits, labels, where=where), ours(HARD)(LOGITS, INDICES, where=where)
        )
        soft = PROBABILITIES.astype(">f8")
        expected = ours(SOFT)(LOGITS, PROBABILITIES, where=where)
        assert_near(ours(SOFT)(logits, soft, where=where), expected)
        traced = jax.jit(lambda x, m: ours(HARD)(x, labels, where=m))
        assert_near(traced(LOGITS, ROWS), ours(HARD)(LOGITS, INDICES, where=ROWS))


def test_labels_of_more_than_32_bits_are_out_of_range():
    """JAX's own conversion keeps the low 32 bits, which here are a valid class."""
    labels = INDICES.astype(np.int64)
    labels[ROWS] += 2**32
    assert ROWS.any()
    for where in (None, ROWS):
        with pytest.raises(IndexError, match=r"^target: got 42949672\d\d at position "):
            ours(HARD)(LOGITS, labels, where=where)
    labels[ROWS] -= 2**32
    labels[~ROWS] += 2**32  # masked
    assert_near(ours(HARD)(LOGITS, labels, where=ROWS), ours(HARD)(LOGITS, INDICES, where=ROWS))


def test_masked_logits_do_not_matter():
    """A NaN in a masked row or class does not change the other values, and its gradient is 0."""
    for where in (ROWS, CLASSES):
        mask = np.broadcast_to(where if where.ndim == 3 else where[..., None], LOGITS.shape)
        for name, labels in LABELS.items():
            for rubbish in (np.nan, np.inf, -np.inf):
                logits = np.where(mask, LOGITS, np.float32(rubbish))
                value, gradient = pulled(ours(name), logits, labels, where=where)
                assert_near([value], [ours(name)(LOGITS, labels, where=where)])
                assert np.isfinite(gradient).all()
                assert not gradient[~mask].any()
                assert not value[~mask.any(-1)].any()
    labels = np.where(ROWS, INDICES, 99)
    assert_near(ours(HARD)(LOGITS, labels, where=ROWS), ours(HARD)(LOGITS, INDICES, where=ROWS))


def test_rules_that_differ_from_optax():
    logits = jnp.zeros((2, 3))
    mask = jnp.array([[True, False, True], [True, True, True]])
    # the class of the label is masked
    assert ours(HARD)(logits, jnp.array([1, 1]), where=mask)[0] == jnp.inf
    assert ours(HARD)(logits, jnp.array([-100, 1]))[0] == 0  # ignored
    with pytest.raises(IndexError, match="target: got -1 at position 0; expected 0 <= target < 3"):
        ours(HARD)(logits, jnp.array([-1, 1]))
    assert jnp.isnan(jax.jit(ours(HARD))(logits, jnp.array([-1, 1]))).tolist() == [True, False]
    # the target is not broadcast
    with pytest.raises(ValueError, match=r"target: got shape \(3,\)"):
        ours(SOFT)(logits, jnp.ones(3))
    safe = logits.at[:, 0].set(-jnp.inf)
    labels = jnp.array([[0.0, 0.5, 0.5], [0.4, 0.3, 0.3]])
    for name in (SOFT, "safe_softmax_cross_entropy"):
        assert_near(ours(name)(safe, labels), np.array([np.log(2), np.inf]))


# ---- transformations


def twice(loss):
    @jax.custom_batching.custom_vmap
    def batched(x):
        return loss(x)

    @batched.def_vmap
    def _(size, is_batched, x):
        return jax.vmap(loss)(x), True

    return jax.vmap(batched)


TRANSFORMATIONS = {
    "grad": jax.grad,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),)),
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](jnp.cos(x)),
    "vjp": lambda f: lambda x: jax.vjp(f, x)[1](jnp.asarray(0.3, x.dtype)),
    "hessian": jax.hessian,
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "scan": lambda f: jax.grad(
        lambda x: jax.lax.scan(lambda c, s: (c + f(s * x), None), 0.0, jnp.arange(1.0, 3.0))[0]
    ),
    "sequential vmap": lambda f: (
        lambda x: jax.vmap(jax.custom_batching.sequential_vmap(f))(jnp.stack([x, 2 * x]))
    ),
    "custom vmap": lambda f: lambda x: twice(f)(jnp.stack([x, 2 * x])),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])).sum()),
}


@pytest.mark.parametrize("where", [None, CLASSES], ids=["all", "classes"])
@pytest.mark.parametrize("name", LABELS)
def test_transformations(name, where):
    with enable_x64():
        logits = jnp.asarray(LOGITS[:, 0], jnp.float64)
        labels = jnp.asarray(LABELS[name][:, 0])
        mask = None if where is None else jnp.asarray(where[:, 0])
        weights = jnp.arange(1.0, 5.0)

        def of(library):
            function = getattr(library, name)
            return lambda x: (weights * function(x, labels, where=mask)).sum()

        mine, theirs = of(xentx_jax), of(optax)
        for transform in TRANSFORMATIONS.values():
            # For rows with all classes masked, Optax's second derivatives are NaN.
            wrap = np.nan_to_num if where is not None else np.asarray
            expected = jax.tree.map(wrap, jax.jit(transform(theirs))(logits))
            found = jax.jit(transform(mine))(logits)
            assert_near(found, expected, 1e-9, 1e-10)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 0)], ids=str)
@pytest.mark.parametrize("name", LABELS)
def test_vmap(name, axes):
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS[name])
    args = [
        a[0] if i is None else jnp.moveaxis(a, 0, i)
        for a, i in zip((logits, labels), axes, strict=True)
    ]
    found = jax.vmap(ours(name), axes)(*args)
    for n in range(4):
        x, t = (a[0] if i is None else a[n] for a, i in zip((logits, labels), axes, strict=True))
        assert_near(found[n], ours(name)(x, t))


def test_ahead_of_time_donated_and_exported():
    def step(x, t, m):
        return jax.value_and_grad(lambda x: ours(HARD)(x, t, where=m).mean())(x)

    arrays = [jnp.asarray(a) for a in (LOGITS, INDICES, CLASSES)]
    expected = jax.jit(step)(*arrays)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    assert_near(jax.jit(step).lower(*shapes).compile()(*arrays), expected)
    exported = jax.export.deserialize(jax.export.export(jax.jit(step))(*arrays).serialize())
    assert_near(exported.call(*arrays), expected)
    donated = jax.jit(step, donate_argnums=0)(jnp.array(LOGITS), *arrays[1:])
    assert_near(donated, expected)


def test_no_false_alarm_where_nans_are_looked_for():
    with jax.debug_nans(True):
        for name, labels in LABELS.items():
            for where in (None, ROWS, CLASSES):
                for wrap in (lambda f: f, jax.jit):
                    function = functools.partial(ours(name), labels=labels, where=where)
                    jax.block_until_ready(
                        wrap(jax.grad(lambda x, f=function: f(x).sum()))(jnp.asarray(LOGITS))
                    )


def run(program, **environment):
    """Run a program in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="JAX < 0.7.1 has another name for it")
def test_meshes(engine):
    run(
        """
    import contextlib
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import xentx_jax
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 12)).astype("float32")
    labels = {
        "softmax_cross_entropy_with_integer_labels": rng.integers(0, 12, 8),
        "softmax_cross_entropy": rng.dirichlet(np.ones(12), 8).astype("float32"),
    }
    mask = rng.random((8, 12)) > 0.3
    assert jax.device_count() == 4
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
        for spec in (P("i"), P(None, "i"), P()):
            for name, t in labels.items():
                loss = getattr(xentx_jax, name)
                for where in (None, mask):
                    def step(x, t, m):
                        return jax.value_and_grad(lambda x: loss(x, t, where=m).sum())(x)
                    expected = step(jnp.asarray(x), jnp.asarray(t), where)
                    explicit = kind == AxisType.Explicit
                    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
                        def put(a):
                            if a is None:
                                return None
                            own = spec if a.ndim == 2 else P(*spec[:1])
                            return jax.device_put(a, NamedSharding(mesh, own))
                        found = jax.jit(step)(put(x), put(t), put(where))
                        for a, b in zip(found, expected):
                            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_PLATFORMS="cpu",
        XENTX_ENGINE=engine,
    )


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="JAX < 0.7.1 has another name for it")
def test_nll_loss_on_meshes():
    """Sharded log-probabilities are not gathered."""
    run(
        """
    import contextlib
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import xentx_jax
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 12)).astype("float32")
    t = np.array([0, 11, -100, 3, 4, 5, 2, 2], np.int32)
    weight = rng.uniform(0.5, 2, 12).astype("float32")
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("i", "j"), axis_types=(kind,) * 2)
        for spec in (P("i", None), P(None, "j"), P("i", "j"), P(None, None)):
            for options in ({}, {"weight": weight}, {"reduction": "none"}):
                def loss(x, t):
                    return xentx_jax.nll_loss(x, t, **options).sum()
                expected = jax.value_and_grad(loss)(jnp.asarray(x), jnp.asarray(t))
                explicit = kind == AxisType.Explicit
                with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
                    own = NamedSharding(mesh, spec)
                    there = jax.device_put(x, own), jax.device_put(
                        t, NamedSharding(mesh, P(*spec[:1]))
                    )
                    for function in (loss, jax.grad(loss)):
                        out = own if function is not loss and not explicit else None
                        compiled = jax.jit(function, out_shardings=out).lower(*there).compile()
                        assert "f32[8,12]" not in compiled.as_text() or spec == P(None, None)
                    found = jax.jit(jax.value_and_grad(loss))(*there)
                    for a, b in zip(found, expected):
                        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_PLATFORMS="cpu",
        XENTX_ENGINE="portable",
    )
