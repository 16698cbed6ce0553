"""jax.export with symbolic sizes, for every loss, reduction and kind of target."""

import numpy as np
import pytest

import xentx
from xentx.testing._problems import REDUCTIONS

ROWS, CLASSES, FEATURES = 6, 5, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
HIDDEN = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32)
HEAD = RNG.normal(size=(CLASSES, FEATURES)).astype(np.float32)
TARGETS = {
    "hard": (np.array([0, 4, -100, 1, 2, 3], np.int32), "b"),
    "soft": (RNG.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32), "b, {classes}"),
}
WEIGHT = RNG.uniform(0.5, 2, CLASSES).astype(np.float32)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, ROWS).astype(np.float32)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 5.0, "temperature": 1.5}


@pytest.fixture(autouse=True)
def _jax(frameworks):
    if "jax" not in frameworks:
        pytest.skip("not requested")


def check(function, shapes, *arrays, rtol=2e-6):
    """Export a function and its gradient for symbolic shapes, and call it with arrays."""
    import jax
    import jax.export
    import jax.numpy as jnp

    def both(x, *rest):
        value, pull = jax.vjp(lambda x: function(x, *rest), x)
        return value, pull(jnp.ones_like(value))[0]

    arrays = [jnp.asarray(array) for array in arrays]
    given = jax.export.symbolic_args_specs(arrays, shapes)
    exported = jax.export.export(jax.jit(both))(*given)
    exported = jax.export.deserialize(exported.serialize())
    for found, expected in zip(exported.call(*arrays), both(*arrays), strict=True):
        a, b = np.asarray(found, np.float32), np.asarray(expected, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


# Every reduction with all options and symbolic classes, and "mean" without options or with a known
# number of classes.
CASES = [
    *((reduction, OPTIONS, "c") for reduction in REDUCTIONS),
    *(("mean", options, classes) for options, classes in (({}, "c"), (OPTIONS, str(CLASSES)))),
]


@pytest.mark.parametrize(
    ("reduction", "options", "classes"),
    CASES,
    ids=[f"{r}-{'options' if o else 'plain'}-{c}" for r, o, c in CASES],
)
@pytest.mark.parametrize("kind", TARGETS)
def test_cross_entropy(kind, reduction, options, classes):
    def loss(logits, target, weight, sample_weight):
        return xentx.cross_entropy(
            logits,
            target,
            weight=weight,
            sample_weight=sample_weight,
            reduction=reduction,
            **options,
        )

    target, shape = TARGETS[kind]
    shapes = [f"b, {classes}", shape.format(classes=classes), classes, "b"]
    check(loss, shapes, LOGITS, target, WEIGHT, SAMPLE_WEIGHT)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(kind, reduction):
    def loss(log_probs, target):
        return xentx.nll_loss(log_probs, target, reduction=reduction)

    target, shape = TARGETS[kind]
    check(loss, ["b, 5", shape.format(classes=5)], LOGITS, target)


@pytest.mark.parametrize("field", ["loss", "lse", "log_prob", "entropy"])
def test_per_row(field):
    def loss(logits, target):
        return getattr(xentx.per_row(logits, target), field)

    check(loss, ["b, 5", "b"], LOGITS, TARGETS["hard"][0])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_cross_entropy(kind, reduction):
    def loss(hidden, head, target):
        return xentx.linear_cross_entropy(hidden, head, target, reduction=reduction, **OPTIONS)

    target, shape = TARGETS[kind]
    check(loss, ["b, 3", "5, 3", shape.format(classes=5)], HIDDEN, HEAD, target)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("argument", ["hidden", "head", "bias"])
def test_tiles_of_rows(argument, dtype):
    """The last tile is larger than the remaining rows, and the rows have several axes."""
    import jax.numpy as jnp

    arrays = {"hidden": HIDDEN.reshape(2, 3, 3), "head": HEAD, "bias": WEIGHT}
    arrays = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    target = TARGETS["hard"][0].reshape(2, 3)
    first = arrays.pop(argument)
    names = list(arrays)

    def loss(x, target, *rest):
        given = {argument: x, **dict(zip(names, rest, strict=True))}
        factors = given["hidden"], given["head"]
        return xentx.linear_cross_entropy(*factors, target, bias=given["bias"], chunk=4)

    shapes = {"hidden": "b, s, 3", "head": "5, 3", "bias": "5"}
    check(
        loss,
        [shapes[argument], "b, s", *(shapes[name] for name in names)],
        first,
        target,
        *arrays.values(),
        rtol=2e-6 if dtype == "float32" else 1e-2,
    )


@pytest.mark.parametrize("chunk", ["auto", 4])
@pytest.mark.parametrize("field", ["loss", "entropy"])
def test_linear_per_row(field, chunk):
    def loss(hidden, head, target):
        return getattr(xentx.linear_per_row(hidden, head, target, chunk=chunk), field)

    check(loss, ["b, 3", "5, 3", "b"], HIDDEN, HEAD, TARGETS["hard"][0])


@pytest.mark.parametrize("normalizer", [2.5, "traced"])
def test_normalizer(normalizer):
    def loss(logits, target, divisor):
        given = divisor if normalizer == "traced" else normalizer
        return xentx.cross_entropy(logits, target, normalizer=given)

    check(loss, ["b, 5", "b", ""], LOGITS, TARGETS["hard"][0], np.float32(2.5))


def test_log_softmax():
    check(xentx.log_softmax, ["b, c"], LOGITS)
