"""Sharded losses on eight CPU devices of JAX, for `test_jax_devices.py`.

``python jax_devices.py`` prints a line for each case, with its name and the error.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import re
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import xentx
from xentx_jax import parallel

ROWS, CLASSES, SEED = 12, 16, 20261129
WIDE = jax.config.jax_enable_x64
LINE = jax.make_mesh((8,), ("v",))  # explicit sharding, the default
GRID = jax.make_mesh((2, 2, 2), ("d", "v", "w"), axis_types=(AxisType.Auto,) * 3)
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


OPTIONS = {
    "plain": {},
    "none": {"reduction": "none"},
    "weighted mean": {"reduction": "weighted_mean", "weight": True, "label_smoothing": 0.1},
    "weight": {"weight": True},
    "weight and smoothing": {"weight": True, "label_smoothing": 0.1},
    "soft": {"soft": True, "weight": True, "reduction": "weighted_mean"},
    "everything": {
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "logit_softcap": 8.0,
        "temperature": 1.5,
        "reduction": "sum",
    },
}


def problem(options):
    """Return arrays by name, and the other options."""
    options, rng = dict(options), np.random.default_rng(SEED)
    x = rng.normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
    hard = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    x[5, 7], hard[5] = 40.0, 7  # confident
    x[6, 1] = x[6, 14] = x[6].max() + 1.0  # equal on two devices
    x[7, 5:13], hard[7] = -30.0, 14
    named = {"logits": x, "target": hard}
    if options.pop("soft", False):
        named["target"] = rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    else:
        hard[3], x[3] = -100, np.nan  # ignored
        if not options.get("label_smoothing"):
            x[7, 5:13] = -np.inf  # devices without finite logits
    if options.get("reduction") == "none":
        x[8, 2], x[9] = np.nan, -np.inf
    if options.pop("weight", False):
        named["weight"] = rng.uniform(0.5, 2, CLASSES).astype(np.float32)
    if options.pop("sample_weight", False):
        named["sample_weight"] = rng.uniform(0.5, 2, ROWS).astype(np.float32)
    return named, options


def specs(named, axes="v", rows=None):
    """Return how each array is sharded."""
    soft = named["target"].ndim == 2
    known = {
        "logits": P(rows, axes),
        "target": P(rows, axes) if soft else P(rows),
        "weight": P(axes),
        "sample_weight": P(rows),
    }
    return {name: known[name] for name in named}


def sharded(named, options, mesh=LINE, axes="v"):
    """Return the sharded loss as a function of whole arrays, and the arrays with their sharding."""

    def loss(given):
        given = dict(given)
        logits, target = given.pop("logits"), given.pop("target")
        return parallel.cross_entropy(logits, target, axis_name=axes, **given, **options)

    cut = specs(named, axes)
    whole = {name: jax.device_put(a, NamedSharding(mesh, cut[name])) for name, a in named.items()}
    return jax.shard_map(loss, mesh=mesh, in_specs=(cut,), out_specs=P()), whole


def dense(options):
    def loss(given):
        given = dict(given)
        logits, target = given.pop("logits"), given.pop("target")
        return xentx.cross_entropy(logits, target, **given, **options)

    return loss


def pulled(loss, named):
    """Value, and gradients with respect to all float arrays, for a non-uniform cotangent."""

    def both(given, fixed):
        value = loss({**given, **fixed})
        return (value * jnp.linspace(0.5, 1.5, value.size)).sum() if value.ndim else value, value

    moved = {k: a for k, a in named.items() if a.dtype == np.float32}
    fixed = {k: a for k, a in named.items() if k not in moved}
    gradients, value = jax.jit(jax.grad(both, has_aux=True))(moved, fixed)
    return np.asarray(value), {k: np.asarray(g) for k, g in gradients.items()}


def units(found, true):
    """Error in units in the last place of the largest number of a row."""
    assert found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(true))
    found, true = (np.where(np.isfinite(true), a, 0).astype(np.float64) for a in (found, true))
    scale = np.abs(true).max(-1, keepdims=True) if true.ndim > 1 else np.abs(true)
    return float((np.abs(found - true) / np.spacing(np.maximum(scale, 1e-30).astype("f"))).max())


@case
def values_and_gradients():
    for name, options in OPTIONS.items():
        named, rest = problem(options)
        value, gradients = pulled(*sharded(named, rest))
        # True values, from NumPy in float64.
        given = {k: a.astype(np.float64) if a.dtype == np.float32 else a for k, a in named.items()}
        logits, target = given.pop("logits"), given.pop("target")
        seed = np.linspace(0.5, 1.5, ROWS) if rest.get("reduction") == "none" else None
        true, by_logits = xentx.value_and_grad(xentx.cross_entropy)(
            logits, target, **given, **rest, cotangent=seed
        )
        errors = units(value, true), units(gradients["logits"], by_logits)
        # Without float64, capped logits have rounding errors of float32.
        most = (1, 4) if WIDE else (10, 30) if "logit_softcap" in rest else (6, 6)
        assert errors[0] <= most[0] and errors[1] <= most[1], (name, errors)  # noqa: PT018
        _, expected = pulled(dense(rest), named)
        for key in gradients.keys() - {"logits"}:
            np.testing.assert_allclose(
                gradients[key], expected[key], rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}"
            )


@case
def confident_rows_keep_their_digits():
    x = np.zeros((1, 16), np.float32)
    x[0, 3] = 30.0
    named = {"logits": x, "target": np.array([3])}
    value, gradients = pulled(*sharded(named, {}))
    true, by_logits = xentx.value_and_grad(xentx.cross_entropy)(x.astype(np.float64), [3])
    np.testing.assert_allclose(value, true, rtol=1e-6)
    np.testing.assert_allclose(gradients["logits"], by_logits, rtol=1e-6)


@case
def second_order_and_forward_mode():
    named, rest = problem({"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 1.5})
    named["logits"] = np.nan_to_num(named["logits"])
    v = np.random.default_rng(1).normal(size=(ROWS, CLASSES)).astype(np.float32)

    def derivatives(loss, named, v):
        def f(x):
            return loss({**named, "logits": x})

        x = named["logits"]
        return (
            jax.jvp(f, (x,), (v,))[1],
            jax.jvp(jax.grad(f), (x,), (v,))[1],
            jax.grad(lambda x: (jax.grad(f)(x) * v).sum())(x),
        )

    loss, whole = sharded(named, rest)
    direction = jax.device_put(v, NamedSharding(LINE, P(None, "v")))
    found = jax.jit(lambda *a: derivatives(loss, *a))(whole, direction)
    expected = jax.jit(lambda *a: derivatives(dense(rest), *a))(named, v)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)


@case
def options_that_are_traced():
    named, _ = problem({"weight": True})
    named = {**named, "logits": np.nan_to_num(named["logits"], neginf=-9.0)}
    numbers = {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 1.5, "logit_softcap": 8.0}
    numbers = {k: np.float32(v) for k, v in numbers.items()}
    cut = specs(named)

    def loss(given):
        given = dict(given)
        logits, target = given.pop("logits"), given.pop("target")
        return parallel.cross_entropy(logits, target, axis_name="v", **given)

    whole = {name: jax.device_put(a, NamedSharding(LINE, cut[name])) for name, a in named.items()}
    everywhere = dict.fromkeys(numbers, P())
    function = jax.shard_map(loss, mesh=LINE, in_specs=({**cut, **everywhere},), out_specs=P())
    replicated = {k: jax.device_put(v, NamedSharding(LINE, P())) for k, v in numbers.items()}
    value, gradients = pulled(function, {**whole, **replicated})
    true, expected = pulled(dense({}), {**named, **numbers})
    np.testing.assert_allclose(value, true, rtol=1e-5)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[key], rtol=2e-4, atol=1e-5, err_msg=key)


@case
def several_axes_and_rows_that_are_spread():
    """Classes over two axes of the mesh, rows over a third one, and a mean over all rows."""
    named, rest = problem({"label_smoothing": 0.1})
    cut = specs(named, ("v", "w"), "d")

    def loss(given):
        value, count = parallel.cross_entropy(
            given["logits"],
            given["target"],
            axis_name=("v", "w"),
            reduction="sum",
            return_normalizer=True,
            **rest,
        )
        value, count = jax.lax.psum((value, count), "d")
        return value / count.astype(value.dtype)

    function = jax.shard_map(loss, mesh=GRID, in_specs=(cut,), out_specs=P())
    found, expected = pulled(function, named), pulled(dense(rest), named)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1]["logits"], expected[1]["logits"], rtol=1e-4, atol=1e-7)


@case
def per_row():
    for name in ("none", "weight and smoothing", "soft"):
        options = {k: v for k, v in OPTIONS[name].items() if k != "reduction"}
        named, rest = problem({**options, "reduction": "none"})
        rest.pop("reduction")
        cut = specs(named)

        def stats(function, given, rest=rest, **more):
            given = dict(given)
            return function(given.pop("logits"), given.pop("target"), **given, **rest, **more)

        def total(found):
            return sum((i + 1) * jnp.nan_to_num(field).sum() for i, field in enumerate(found[:4]))

        def sharded_stats(given, stats=stats):
            return stats(parallel.per_row, given, axis_name="v")

        function = jax.shard_map(sharded_stats, mesh=LINE, in_specs=(cut,), out_specs=P())
        whole = {k: jax.device_put(a, NamedSharding(LINE, cut[k])) for k, a in named.items()}
        results = []
        for one, given in ((function, whole), (lambda g, s=stats: s(xentx.per_row, g), named)):
            fixed = {k: a for k, a in given.items() if k != "logits"}
            f = lambda x, one=one, fixed=fixed: one({**fixed, "logits": x})  # noqa: E731
            by_logits = jax.jit(jax.grad(lambda x, f=f: total(f(x))))(given["logits"])
            results.append((jax.jit(f)(given["logits"]), by_logits))
        (found, gradient), (expected, true) = results
        for field, a, b in zip(expected._fields, found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6, err_msg=f"{name} {field}")
        assert found.prediction.dtype == expected.prediction.dtype
        np.testing.assert_allclose(gradient, true, rtol=1e-4, atol=1e-5, err_msg=name)


def linear_problem(dtype=np.float32):
    rng = np.random.default_rng(SEED)
    named, _ = problem({"weight": True})
    hidden = rng.normal(size=(ROWS, 6)).astype(dtype)
    hidden[3] = np.nan  # ignored
    return {
        "hidden": hidden,
        "head": rng.normal(size=(CLASSES, 6)).astype(dtype),
        "bias": rng.normal(size=CLASSES).astype(dtype),
        "target": named["target"],
    }, named["weight"]


def linear_sharded(mesh, axes, rows=None, **options):
    """Return the sharded linear loss as a function of whole arrays."""
    cut = {"hidden": P(rows), "head": P(axes), "bias": P(axes), "target": P(rows)}

    def loss(given, weight):
        given = dict(given)
        factors = [given.pop(name) for name in ("hidden", "head", "target")]
        value, count = parallel.linear_cross_entropy(
            *factors,
            axis_name=axes,
            weight=weight,
            reduction="sum",
            return_normalizer=True,
            chunk=5,
            **given,
            **options,
        )
        if rows is not None:
            value, count = jax.lax.psum((value, count), rows)
        return value / count.astype(value.dtype)

    return jax.shard_map(loss, mesh=mesh, in_specs=(cut, P(axes)), out_specs=P()), cut


def linear_pulled(loss, named, weight):
    factors = {k: a for k, a in named.items() if k != "target"}
    step = jax.value_and_grad(lambda f: loss({**f, "target": named["target"]}, weight))
    value, gradients = jax.jit(step)(factors)
    return [np.asarray(a, np.float32) for a in (value, *gradients.values())]


@case
def linear():
    """A mesh with explicit sharding, and a grid whose other axis shards the rows."""
    for dtype, tolerance in ((np.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        named, weight = linear_problem(dtype)
        options = {"label_smoothing": 0.1, "z_loss": 0.01}

        def whole(given, weight, options=options):
            given = dict(given)
            factors = [given.pop(name) for name in ("hidden", "head", "target")]
            return xentx.linear_cross_entropy(*factors, weight=weight, **given, **options)

        expected = linear_pulled(whole, named, weight)
        for mesh, axes, rows in ((LINE, "v", None), (GRID, ("v", "w"), "d")):
            loss, cut = linear_sharded(mesh, axes, rows, **options)
            placed = {k: jax.device_put(a, NamedSharding(mesh, cut[k])) for k, a in named.items()}
            there = jax.device_put(weight, NamedSharding(mesh, P(axes)))
            for a, b in zip(linear_pulled(loss, placed, there), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10)


@case
def without_jit():
    named, weight = linear_problem()
    loss, _ = linear_sharded(GRID, ("v", "w"), "d")
    found = loss(named, weight)
    np.testing.assert_allclose(found, jax.jit(loss)(named, weight), rtol=1e-6)
    named, rest = problem({"label_smoothing": 0.1})
    loss, whole = sharded(named, rest)
    np.testing.assert_allclose(loss(whole), jax.jit(loss)(whole), rtol=1e-6)


@case
def linear_by_weights_is_an_error():
    named, weight = linear_problem()
    loss, _ = linear_sharded(GRID, ("v", "w"), "d")
    try:
        jax.grad(loss, argnums=1)(named, weight)
    except NotImplementedError as error:
        assert "weight: got an array that is differentiated" in str(error)  # noqa: PT017
    else:
        raise AssertionError


@case
def a_class_that_is_none():
    named, _ = problem({"reduction": "none"})
    named["target"] = np.where(np.arange(ROWS) == 4, CLASSES, named["target"])
    value, gradients = pulled(*sharded(named, {"reduction": "none"}))
    assert np.isnan(value[4])
    assert np.isnan(gradients["logits"][4]).all()
    assert np.isfinite(value[:3]).all()


def collectives(function, *args):
    """Return the kinds of the collectives of a compiled program, and their numbers of arrays."""
    text = jax.jit(function).lower(*args).compile().as_text()
    pattern = (
        r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)[\w-]*\("
    )
    return [
        (kind, len(re.findall(rf"\[{ROWS}\]", shapes)), len(re.findall(r"\w\[", shapes)))
        for shapes, kind in re.findall(pattern, text)
    ]


@case
def two_collectives():
    """One maximum with one number for each row, one sum with 3 to 5, none in the backward pass."""
    for numbers, options in (
        (3, {}),
        (4, {"label_smoothing": 0.1}),
        (4, {"weight": True}),
        (5, {"weight": True, "label_smoothing": 0.1}),
    ):
        named, rest = problem(options)
        loss, whole = sharded(named, rest)
        fixed = {k: a for k, a in whole.items() if k != "logits"}
        step = jax.value_and_grad(lambda x, loss=loss, fixed=fixed: loss({**fixed, "logits": x}))
        sent = collectives(step, whole["logits"])
        assert sorted(sent) == [("all-reduce", 1, 1), ("all-reduce", numbers, numbers)], sent
    named, weight = linear_problem()
    loss, cut = linear_sharded(LINE, "v")
    placed = {k: jax.device_put(a, NamedSharding(LINE, cut[k])) for k, a in named.items()}
    factors = {k: placed.pop(k) for k in ("hidden", "head")}
    there = jax.device_put(weight, NamedSharding(LINE, P("v")))
    step = jax.value_and_grad(lambda f: loss({**f, **placed}, there))
    kinds = [kind for kind, *_ in collectives(step, factors)]
    # All-reduces of the maximum, of the sums, of the divisor (XLA may combine it with the sums),
    # and of the gradient with respect to hidden.
    assert set(kinds) == {"all-reduce"}, kinds
    assert len(kinds) in (3, 4), kinds


def main():
    for name in sys.argv[1:] or CASES:
        try:
            CASES[name]()
            wrong = ""
        except Exception:  # noqa: BLE001 -- a case may raise any error
            wrong = traceback.format_exc()
        print(repr((name, wrong)), flush=True)  # noqa: T201 -- the test reads it


if __name__ == "__main__":
    main()
