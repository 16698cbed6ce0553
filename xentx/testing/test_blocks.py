"""Blocks of classes: any split gives the loss and the gradient of the whole row."""

import functools
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import xentx
from xentx._registry import require
from xentx.testing import _oracle as oracle
from xentx.testing._problems import OPTIONS, RNG_SEED, draw_problem

NONE = {"plain", "weight", "ignore", "smoothing", "z loss", "softcap", "everything"}
ROW_OPTIONS = {name: options for name, options in OPTIONS.items() if name in NONE}


def added(states):
    """Add the states of all blocks, aligned to their maximum."""
    xp = require("state", states[0].top).namespace(states[0].top)
    top = functools.reduce(xp.maximum, [state.top for state in states])
    aligned = [xentx.align(state, top) for state in states]
    sums = [functools.reduce(lambda a, b: a + b, field) for field in zip(*aligned, strict=True)]
    return xentx.Partials(top, *sums[1:5], states[0].kept)


def blocks(logits, target, *, cuts, order, align, z_loss=0.0, cotangent=None, **options):
    """Return an array with one row for each row of the logits: its loss and its gradient."""
    xp = require("logits", logits).namespace(logits)
    classes, weight = logits.shape[-1], options.pop("weight", None)
    shares = []
    for a, b in itertools.pairwise([0, *cuts, classes]):
        share = target[:, a:b] if len(target.shape) == len(logits.shape) else target
        own = {} if weight is None else {"weight": weight[a:b]}
        shares.append((logits[:, a:b], share, {"classes": classes, "start": a, **own, **options}))
    states = [xentx.partials(x, t, **more) for x, t, more in shares]
    states = states[order % len(states) :] + states[: order % len(states)]
    state = added(states) if align else functools.reduce(xentx.combine, states)
    gradients = [
        xentx.block_gradient(state, x, t, cotangent=cotangent, z_loss=z_loss, **more)
        for x, t, more in shares
    ]
    loss = xp.astype(xentx.finish(state, z_loss=z_loss), gradients[0].dtype)
    return xp.concat([loss[:, None], *gradients], axis=1)


def check(route, logits, target, *, cotangent, units=(1, 4), **options):
    """Compare with `cross_entropy` in float64. `units` are ULPs of the loss and of the gradient."""
    found = route.value(blocks, logits, target, cotangent=cotangent, **options)
    assert found.dtype == logits.dtype
    for name in ("cuts", "order", "align"):
        del options[name]
    wide = logits.astype(np.float64)
    if target.ndim == logits.ndim:
        target = target.astype(np.float64)
    loss, gradient = xentx.value_and_grad(xentx.cross_entropy)(
        wide, target, reduction="none", cotangent=cotangent.astype(np.float64), **options
    )
    # Without float64, capped logits have rounding errors of float32.
    if not route.has_float64 and "logit_softcap" in options:
        units = (units[0] + 40, units[1] + 8)
    for got, true, allowed in (
        (found[:, :1], loss[:, None], units[0]),
        (found[:, 1:], gradient, units[1]),
    ):
        assert np.array_equal(np.isnan(got), np.isnan(true))
        scale = np.nanmax(
            np.abs(np.where(np.isfinite(true), true, 0)), axis=1, keepdims=True, initial=1e-30
        )
        infinite = np.isinf(true)
        assert np.array_equal(got[infinite], true[infinite])
        error = np.abs(np.where(infinite, 0, got.astype(np.float64) - np.where(infinite, 0, true)))
        worst = np.nanmax(error / np.spacing(scale.astype(np.float32)), initial=0)
        assert worst <= allowed, (worst, options)


def test_any_split_gives_the_dense_gradient(route):
    if route.traced:
        pytest.skip("would compile for each split")

    @settings(max_examples=10 if route.compiles else 80)
    @given(st.data())
    def run(data):
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        classes = data.draw(st.integers(1, 9))
        options = data.draw(st.sampled_from(list(ROW_OPTIONS.values())))
        soft = data.draw(st.booleans())
        logits, target, options, _ = draw_problem(
            rng, (5, classes), 1, np.float32, soft=soft, reduction="none", options=options
        )
        for unused in ("sample_weight", "reduction", "axis"):
            options.pop(unused, None)
        if data.draw(st.booleans()):
            logits = np.round(logits)  # with ties
        if not soft and data.draw(st.booleans()):
            logits[0, int(target[0]) if 0 <= target[0] < classes else 0] += 20.0  # confident
        if not soft and options.get("ignore_index", -100) is not None and data.draw(st.booleans()):
            target = target.copy()
            target[1] = options.get("ignore_index", -100)
            logits[1] = np.nan
        cuts = data.draw(st.sets(st.integers(1, classes - 1), max_size=4)) if classes > 1 else ()
        check(
            route,
            logits,
            target,
            cuts=tuple(sorted(cuts)),
            order=data.draw(st.integers(0, 5)),
            align=data.draw(st.booleans()),
            cotangent=rng.normal(size=5).astype(np.float32),
            units=(1, 4) if route.has_float64 else (6, 6),
            **options,
        )

    run()


CASES = {
    "confident": [30.0, 0.0, 1.0, -1.0, 2.0, 0.5],
    "ties across blocks": [3.0, -1.0, 3.0, 0.0, 1.0, 3.0],
    "a block of nothing": [1.0, 2.0, -np.inf, -np.inf, 0.0, 1.0],
    "nothing": [-np.inf] * 6,
    "NaN": [0.0, np.nan, 1.0, 2.0, 3.0, 4.0],
    "infinite": [0.0, 1.0, np.inf, 2.0, 3.0, 4.0],
    "ignored NaN": [np.nan] * 6,
    "masked target": [-np.inf, 0.0, 1.0, 2.0, 3.0, 4.0],
}


@pytest.mark.parametrize("align", [False, True], ids=["combine", "align"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_corners(route, align, smoothing):
    logits = np.array(list(CASES.values()), np.float32)
    target = np.where(np.array(list(CASES)) == "ignored NaN", -100, 0)
    check(
        route,
        logits,
        target,
        cuts=(2, 4),
        order=1,
        align=align,
        cotangent=np.linspace(0.5, 2, len(CASES)).astype(np.float32),
        label_smoothing=smoothing,
        units=(1, 4) if route.has_float64 else (6, 6),
    )


def test_a_confident_row_keeps_its_digits(route):
    """Differentiating `finish` would lose all digits in float32, and most of them in float64."""
    logits = np.array([[30.0, 0.0, 1.0, 0.5]], np.float32)
    found = route.value(
        blocks, logits, np.array([0]), cuts=(1, 2), order=0, align=True, cotangent=None
    )[0, 1:]
    _, expected = xentx.value_and_grad(xentx.cross_entropy)(logits.astype(np.float64), [0])
    np.testing.assert_allclose(found, expected[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_and_axes(route, dtype):
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(RNG_SEED)
    logits, target, _, _ = draw_problem(
        rng, (2, 6, 3), 1, oracle.DTYPES[dtype], soft=False, reduction="none", options={}
    )
    found = route.value(middle, logits, target)
    _, whole = xentx.value_and_grad(xentx.cross_entropy)(
        logits.astype(np.float64), target, axis=1, reduction="sum"
    )
    assert found.dtype == logits.dtype
    unit = {"float16": 2e-3, "bfloat16": 1e-2, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(found.astype(np.float64), whole, atol=unit)


def middle(logits, target):
    """Compute the gradient from blocks along the middle axis."""
    xp = require("logits", logits).namespace(logits)
    shares = [(logits[:, :2, :], 0), (logits[:, 2:, :], 2)]
    options = {"classes": logits.shape[1], "axis": 1}
    a, b = (xentx.partials(x, target, start=start, **options) for x, start in shares)
    state = xentx.combine(a, b)
    gradients = [
        xentx.block_gradient(state, x, target, start=start, **options) for x, start in shares
    ]
    return xp.concat(gradients, axis=1)


def aligned_loss(logits, target, classes):
    """Compute the loss from states that are aligned and added."""
    size = logits.shape[1] // 2
    states = [
        xentx.partials(logits[:, a : a + size], target, classes=classes, start=a) for a in (0, size)
    ]
    return xentx.finish(added(states))


def test_gradient_through_align(route):
    """The maximum is treated as a constant, and the gradient is still complete."""
    if "float64" not in route.dtypes or not route.has_autodiff:
        pytest.skip(f"{route} has no float64 or no autodiff")
    rng = np.random.default_rng(RNG_SEED)
    logits, target, cotangent = rng.normal(size=(4, 6)), np.array([0, 5, 2, -100]), np.arange(4.0)
    value, gradient = route.pull(aligned_loss, logits, target, cotangent=cotangent, classes=6)
    expected = xentx.value_and_grad(xentx.cross_entropy)(
        logits, target, reduction="none", cotangent=cotangent
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-9, atol=1e-12)


X, T = np.zeros((2, 3), np.float32), np.array([0, 4])


def test_errors():
    state = xentx.partials(X, T, classes=6)
    for call, kind, text in (
        (lambda: xentx.align(X, X), TypeError, "state: got a numpy array; expected what xentx."),
        (lambda: xentx.align(state, "top"), TypeError, "top: got a str; expected an array"),
        (
            lambda: xentx.align(state, np.zeros(3)),
            ValueError,
            r"top: got shape \(3,\); expected \(2,\), the rows of state",
        ),
        (
            lambda: xentx.block_gradient(X, X, T, classes=6),
            TypeError,
            "state: got a numpy array; expected what xentx.partials returns",
        ),
        (
            lambda: xentx.block_gradient(state, None, T, classes=6),
            TypeError,
            "logits: got a NoneType where state is a numpy array; expected both of one framework",
        ),
        (
            lambda: xentx.block_gradient(state, X[:1], T[:1], classes=6),
            ValueError,
            r"state: got rows of shape \(2,\); expected \(1,\), those of logits",
        ),
        (
            lambda: xentx.block_gradient(state, X, T, classes=6, cotangent=np.zeros(3)),
            ValueError,
            r"cotangent: got shape \(3,\); expected \(2,\)",
        ),
        (
            lambda: xentx.block_gradient(state, X, T, classes=6, start=4),
            ValueError,
            "start: got 4 for a block of 3 classes; expected 0 <= start <= 3",
        ),
        (lambda: xentx.block_gradient(state, X, T, classes=3), IndexError, "target: got 4"),
    ):
        with pytest.raises(kind, match=text):
            call()
