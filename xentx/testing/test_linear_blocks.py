"""Blocks of the classes of a last layer: any split, in any order and chunk, is the whole layer."""

import functools
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import xentx
from xentx._registry import require
from xentx.testing import _oracle as oracle
from xentx.testing._problems import RNG_SEED, draw_problem
from xentx.testing.test_blocks import ROW_OPTIONS, added

FEATURES = 3


def shares(head, target, bias, weight, cuts, **options):
    """The operands and options of each block."""
    classes = head.shape[0]
    for a, b in itertools.pairwise([0, *cuts, classes]):
        share = target[..., a:b] if options.get("soft") else target
        own = {"classes": classes, "start": a, **options}
        own.pop("soft", None)
        for name, array in (("bias", bias), ("weight", weight)):
            if array is not None:
                own[name] = array[a:b]
        yield head[a:b, :], share, own


def layer(
    hidden, head, target, *, cuts, order=0, align=False, cotangent=None, z_loss=0.0, bias=None,
    weight=None, soft=False, **options
):  # fmt: skip
    """The losses, and the gradients of all blocks, on one axis."""
    xp = require("hidden", hidden).namespace(hidden)
    parts = list(shares(head, target, bias, weight, cuts, soft=soft, **options))
    states = [xentx.linear_partials(hidden, h, t, **own) for h, t, own in parts]
    states = states[order % len(states) :] + states[: order % len(states)]
    state = added(states) if align else functools.reduce(xentx.combine, states)
    found = [
        xentx.linear_block_gradient(state, hidden, h, t, cotangent=cotangent, z_loss=z_loss, **own)
        for h, t, own in parts
    ]
    by_hidden = functools.reduce(lambda a, b: a + b, [one.hidden for one in found])
    by_head = xp.concat([one.head for one in found], axis=0)
    assert by_head.dtype == head.dtype
    joined = [xentx.finish(state, z_loss=z_loss), by_hidden, by_head]
    if bias is not None:
        joined.append(xp.concat([one.bias for one in found], axis=0))
    assert all((one.bias is None) == (bias is None) and one.target is None for one in found)
    return xp.concat([xp.reshape(xp.astype(a, by_hidden.dtype), (-1,)) for a in joined], axis=0)


def truth(hidden, head, target, *, cotangent=None, **options):
    """The same of the whole layer by NumPy in float64."""
    wide = {k: a.astype(np.float64) if isinstance(a, np.ndarray) else a for k, a in options.items()}
    arrays = (a.astype(np.float64) for a in (hidden, head))
    target = target.astype(np.float64) if target.dtype.kind not in "iu" else target
    seed = None if cotangent is None else cotangent.astype(np.float64)
    value, gradients = xentx.value_and_grad(xentx.linear_cross_entropy)(
        *arrays, target, reduction="none", cotangent=seed, **wide
    )
    return [value, *(g for g in gradients[:3] if g is not None)]


def check(route, hidden, head, target, *, tolerance=1e-5, **options):
    """Each part within a tolerance relative to its largest number."""
    found = route.value(layer, hidden, head, target, **options)
    for name in ("cuts", "order", "align", "chunk", "soft"):
        options.pop(name, None)
    for true in truth(hidden, head, target, **options):
        part, found = found[: true.size].reshape(true.shape), found[true.size :]
        scale = 1 + np.max(np.abs(true), initial=0)
        np.testing.assert_allclose(part.astype(np.float64), true, rtol=0, atol=tolerance * scale)
    assert not found.size


def test_any_split_is_the_whole_layer(route):
    if route.traced:
        pytest.skip("compiles again for each split")

    @settings(max_examples=3 if route.compiles else 60)
    @given(st.data())
    def run(data):
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        classes = data.draw(st.integers(1, 9))
        chosen = data.draw(st.sampled_from(list(ROW_OPTIONS.values())))
        soft = data.draw(st.booleans())
        hidden = rng.normal(size=(5, FEATURES)).astype("f")
        head = rng.normal(size=(classes, FEATURES)).astype("f")
        _, target, options, _ = draw_problem(
            rng, (5, classes), 1, np.float32, soft=soft, reduction="none", options=chosen
        )
        for unused in ("sample_weight", "reduction", "axis"):
            options.pop(unused, None)
        if data.draw(st.booleans()):
            options["bias"] = rng.normal(size=classes).astype("f")
        if not soft and options.get("ignore_index", -100) is not None and data.draw(st.booleans()):
            target = target.copy()
            target[1] = options.get("ignore_index", -100)
            hidden[1] = np.nan
        cuts = data.draw(st.sets(st.integers(1, classes - 1), max_size=4)) if classes > 1 else ()
        check(
            route,
            hidden,
            head,
            target,
            soft=soft,
            cuts=tuple(sorted(cuts)),
            order=data.draw(st.integers(0, 5)),
            align=data.draw(st.booleans()),
            chunk=data.draw(st.sampled_from([2, 5, "auto"])),
            cotangent=rng.normal(size=5).astype("f"),
            **options,
        )

    run()


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("chunk", [2, "auto"])
def test_all_options(route, soft, chunk):
    """On traced routes too."""
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(5, FEATURES)).astype("f"), rng.normal(size=(6, 3)).astype("f")
    _, target, options, _ = draw_problem(
        rng, (5, 6), 1, np.float32, soft=soft, reduction="none", options=ROW_OPTIONS["everything"]
    )
    for unused in ("sample_weight", "reduction", "axis"):
        options.pop(unused, None)
    options |= {"bias": rng.normal(size=6).astype("f"), "cuts": (2, 3), "soft": soft}
    check(route, hidden, head, target, chunk=chunk, cotangent=np.ones(5, "f"), **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(route, dtype):
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    rng = np.random.default_rng(RNG_SEED)
    shapes = ((4, FEATURES), (6, FEATURES))
    hidden, head = (rng.normal(size=shape).astype(oracle.DTYPES[dtype]) for shape in shapes)
    target = np.array([0, 5, 2, -100])
    tolerance = {"float16": 2e-3, "bfloat16": 1e-2, "float64": 1e-14}[dtype]
    check(route, hidden, head, target, cuts=(4,), chunk=3, tolerance=tolerance)
    found = route.value(layer, hidden, head, target, cuts=(4,))
    assert found.dtype == (np.float64 if dtype == "float64" else np.float32)


def fields(hidden, head, target, **options):
    """The state, a column for each field."""
    state = xentx.linear_partials(hidden, head, target, **options)
    xp = require("hidden", hidden).namespace(hidden)
    return xp.concat([xp.expand_dims(field, axis=-1) for field in state], axis=-1)


@pytest.mark.parametrize("rows", [(4,), (2, 2), (0,), ()], ids=str)
def test_the_state_is_that_of_the_logits(route, rows):
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(*rows, FEATURES)).astype("f"), rng.normal(size=(4, 3))
    head, bias, target = head.astype("f"), np.zeros(4, "f"), rng.integers(0, 9, rows)
    options = {"classes": 9, "start": 5, "label_smoothing": 0.1}
    found = route.value(fields, hidden, head, target, bias=bias, chunk=3, **options)
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    expected = np.stack(xentx.partials(logits, target, axis=-1, **options), axis=-1)
    assert found.shape == (*rows, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def losses(hidden, head, target):
    """Losses whose derivative goes through the states."""
    own = {"classes": head.shape[0], "chunk": 2}
    a = xentx.linear_partials(hidden, head[:2, :], target, **own)
    b = xentx.linear_partials(hidden, head[2:, :], target, start=2, **own)
    return xentx.finish(xentx.combine(a, b))


def test_gradient_through_the_states(route):
    if "float64" not in route.dtypes or not route.has_autodiff:
        pytest.skip(f"{route} has no float64 or no autodiff")
    rng = np.random.default_rng(RNG_SEED)
    hidden, head = rng.normal(size=(5, FEATURES)), rng.normal(size=(6, FEATURES))
    target, cotangent = np.array([0, 5, 2, -100, 3]), np.arange(5.0)
    hidden[3] = np.nan
    value, found = route.pull(losses, hidden, head, target, cotangent=cotangent, wrt=(0, 1))
    true, *expected = truth(hidden, head, target, cotangent=cotangent)
    np.testing.assert_allclose(value, true, rtol=1e-12)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


H, W, T = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32), np.array([0, 5])


def test_errors():
    state = xentx.linear_partials(H, W, T, classes=6)
    gradient = xentx.linear_block_gradient
    for call, kind, text in (
        (
            lambda: xentx.linear_partials(H, W, T, classes=6, start=4),
            ValueError,
            "start: got 4 for a block of 4 classes; expected 0 <= start <= 2",
        ),
        (lambda: xentx.linear_partials(H, W, T, classes=5), IndexError, "target: got 5"),
        (lambda: xentx.linear_partials(H, W, T, classes=6, chunk=0), ValueError, "chunk: got 0"),
        (
            lambda: gradient(H, H, W, T, classes=6),
            TypeError,
            "state: got a numpy array; expected what xentx.partials returns",
        ),
        (
            lambda: gradient(state, None, W, T, classes=6),
            TypeError,
            "hidden: got a NoneType where state is a numpy array; expected both of one framework",
        ),
        (
            lambda: gradient(state, H[:1], W, T[:1], classes=6),
            ValueError,
            r"state: got rows of shape \(2,\); expected \(1,\), those of hidden of shape \(1, 3\)",
        ),
        (
            lambda: gradient(state, H, W, T, classes=6, cotangent=np.zeros(3)),
            ValueError,
            r"cotangent: got shape \(3,\); expected \(2,\)",
        ),
    ):
        with pytest.raises(kind, match=text):
            call()
