"""Derivatives with respect to targets and weights at classes of -inf, in both modes.

The derivative of a row's loss with respect to ``q_k`` is ``lse - x_k``, which is infinite if
``x_k`` is -inf. Multiplied by a tangent or cotangent of 0, it must give 0.
"""

import functools

import numpy as np
import pytest

import xentx
from xentx.testing import requested_frameworks

INF = np.inf
LOG2 = np.log(2.0)
# Two rows with a masked class, whose target probability is 0. SLOPES are the derivatives lse - x_k.
LOGITS = np.array([[-INF, 0.0, 0.0], [0.0, -INF, 0.0]])
TARGET = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
SLOPES = np.array([[INF, LOG2, LOG2], [LOG2, INF, LOG2]])
LOG_PROBS = np.where(np.isinf(LOGITS), -INF, -LOG2)
TANGENTS = [np.eye(6)[i].reshape(2, 3) for i in range(6)]


class Torch:
    """torch.func."""

    def __init__(self):
        import torch

        self.array = torch.tensor

    def forward(self, function, at, tangent):
        import torch

        value, moved = torch.func.jvp(function, (self.array(at),), (self.array(tangent),))
        return value.numpy(), moved.numpy()

    def reverse(self, function, at, cotangent):
        import torch

        variable = self.array(at).requires_grad_()
        value = function(variable)
        seed = self.array(np.broadcast_to(cotangent, value.shape).astype(at.dtype))
        return torch.autograd.grad(value, variable, seed)[0].numpy()


class JAX:
    """jax.jvp and jax.vjp."""

    def __init__(self):
        import jax.numpy as jnp

        self.array = jnp.asarray

    def forward(self, function, at, tangent):
        import jax

        moved = jax.jvp(function, (self.array(at),), (self.array(tangent),))
        return tuple(np.asarray(x) for x in moved)

    def reverse(self, function, at, cotangent):
        import jax

        value, pull = jax.vjp(function, self.array(at))
        seed = np.broadcast_to(cotangent, value.shape).astype(at.dtype)
        return np.asarray(pull(self.array(seed))[0])


class JAXJit(JAX):
    """jax.jit, where XLA simplifies expressions."""

    @staticmethod
    @functools.cache
    def compiled(function):
        """Compile both modes of a function once."""
        import jax

        return (
            jax.jit(lambda x, t: jax.jvp(function, (x,), (t,))),
            jax.jit(lambda x, c: jax.vjp(function, x)[1](c)[0]),
        )

    def forward(self, function, at, tangent):
        return tuple(np.asarray(x) for x in self.compiled(function)[0](at, tangent))

    def reverse(self, function, at, cotangent):
        import jax

        shape = jax.eval_shape(function, self.array(at)).shape
        seed = self.array(np.broadcast_to(cotangent, shape).astype(at.dtype))
        return np.asarray(self.compiled(function)[1](at, seed))


class TensorFlow:
    """tf.autodiff.ForwardAccumulator and tf.GradientTape."""

    def __init__(self):
        import tensorflow as tf

        self.array = tf.constant

    def forward(self, function, at, tangent):
        import tensorflow as tf

        at, tangent = self.array(at), self.array(tangent)
        with tf.autodiff.ForwardAccumulator(at, tangent) as accumulator:
            value = function(at)
        return value.numpy(), accumulator.jvp(value).numpy()

    def reverse(self, function, at, cotangent):
        import tensorflow as tf

        at = self.array(at)
        with tf.GradientTape() as tape:
            tape.watch(at)
            value = function(at)
        seed = self.array(np.broadcast_to(cotangent, value.shape).astype(at.dtype.as_numpy_dtype))
        return tape.gradient(value, at, output_gradients=seed).numpy()


class TensorFlowFunction(TensorFlow):
    """A tf.function, compiled by XLA."""

    @staticmethod
    @functools.cache
    def compiled(function):
        """Compile the forward mode of a function once."""
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def moved(at, tangent):
            with tf.autodiff.ForwardAccumulator(at, tangent) as accumulator:
                value = function(at)
            return value, accumulator.jvp(value)

        return moved

    def forward(self, function, at, tangent):
        moved = self.compiled(function)(self.array(at), self.array(tangent))
        return tuple(x.numpy() for x in moved)


WAYS = {
    "torch": (Torch,),
    "jax": (JAX, JAXJit),
    "tensorflow": (TensorFlow, TensorFlowFunction),
}


@pytest.fixture(params=[w for name in requested_frameworks() for w in WAYS.get(name, ())])
def way(request):
    return request.param()


def loss_of(name, way, dtype, reduction):
    """Return a loss as a function of its soft target."""
    array = way.array
    logits, log_probs = array(LOGITS.astype(dtype)), array(LOG_PROBS.astype(dtype))
    functions = {
        "cross_entropy": lambda q: xentx.cross_entropy(logits, q, reduction=reduction),
        "nll_loss": lambda q: xentx.nll_loss(log_probs, q, reduction=reduction),
        "per_row": lambda q: xentx.per_row(logits, q).loss,
        "log_prob": lambda q: -xentx.per_row(logits, q).log_prob,
    }
    return functions[name]


NAMES = ["cross_entropy", "nll_loss", "per_row", "log_prob"]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_by_soft_target(way, name, reduction):
    if name in ("per_row", "log_prob") and reduction != "none":
        pytest.skip("has no reduction")
    dtype = np.float32
    loss, at = loss_of(name, way, dtype, reduction), TARGET.astype(dtype)
    divisor = 2.0 if reduction == "mean" else 1.0
    for tangent in (*TANGENTS, np.zeros((2, 3)), TANGENTS[1] + TANGENTS[2], -TANGENTS[0]):
        value, moved = way.forward(loss, at, tangent.astype(dtype))
        assert np.all(np.isfinite(value))
        expected = np.where(tangent == 0, 0.0, tangent * np.where(tangent == 0, 0.0, SLOPES))
        expected = expected.sum(None if reduction != "none" else 1) / divisor
        np.testing.assert_allclose(moved, expected, rtol=1e-6)
    for cotangent in (1.0, 0.0, -2.0) if reduction != "none" else ([1.0, 0.0], [0.0, -2.0]):
        seed = np.broadcast_to(cotangent, (2,))[:, None] / divisor
        expected = np.where(seed == 0, 0.0, seed * np.where(seed == 0, 0.0, SLOPES))
        np.testing.assert_allclose(way.reverse(loss, at, cotangent), expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_by_soft_target_of_linear_cross_entropy(way, reduction):
    """The bias masks one class in every row."""
    if isinstance(way, TensorFlowFunction):
        pytest.skip("TensorFlow writes into arrays there, which has no forward mode")
    hidden, head = way.array(np.ones((2, 4), np.float32)), way.array(np.zeros((3, 4), np.float32))
    bias = way.array(np.array([-INF, 0.0, 0.0], np.float32))
    at = np.array([[0.0, 1.0, 0.0], [0.0, 0.25, 0.75]], np.float32)
    slopes = np.array([[INF, LOG2, LOG2]] * 2)

    def loss(target):
        return xentx.linear_cross_entropy(hidden, head, target, bias=bias, reduction=reduction)

    for tangent in (*TANGENTS, np.zeros((2, 3))):
        value, moved = way.forward(loss, at, tangent.astype(np.float32))
        assert np.all(np.isfinite(value))
        expected = np.where(tangent == 0, 0.0, tangent * np.where(tangent == 0, 0.0, slopes))
        expected = expected.sum(None if reduction == "sum" else 1)
        np.testing.assert_allclose(moved, expected, rtol=1e-6)
    gradient = way.reverse(loss, at, 1.0 if reduction == "sum" else [1.0, 0.0])
    expected = slopes if reduction == "sum" else [slopes[0], [0.0] * 3]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [xentx.cross_entropy, xentx.nll_loss])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_by_weight(way, function, soft):
    """The target is a masked class with weight 0: the loss is 0, its derivative infinite."""
    rows = np.float32(LOGITS if function is xentx.cross_entropy else LOG_PROBS)
    rows = way.array(rows[:1])
    target = np.array([[1.0, 0.0, 0.0]], np.float32) if soft else np.array([0])
    target = way.array(target)
    at = np.array([0.0, 1.0, 1.0], np.float32)

    def loss(weight):
        return function(rows, target, weight=weight, reduction="none")

    for k, expected in enumerate([INF, 0.0, 0.0]):
        value, moved = way.forward(loss, at, np.eye(3, dtype=np.float32)[k])
        np.testing.assert_array_equal(value, [0.0])
        np.testing.assert_array_equal(moved, [expected])
    np.testing.assert_array_equal(way.forward(loss, at, np.zeros(3, np.float32))[1], [0.0])
    np.testing.assert_array_equal(way.reverse(loss, at, 1.0), [INF, 0.0, 0.0])
    np.testing.assert_array_equal(way.reverse(loss, at, 0.0), [0.0, 0.0, 0.0])


def test_by_sample_weight(way):
    """A sample weight of 0 makes an infinite loss 0. The derivative is the infinite loss."""
    logits, target = way.array(np.float32(LOGITS)), way.array(np.array([0, 0]))
    at = np.array([0.0, 1.0], np.float32)

    def loss(sample_weight):
        return xentx.cross_entropy(logits, target, sample_weight=sample_weight, reduction="none")

    value, moved = way.forward(loss, at, np.ones(2, np.float32))
    np.testing.assert_allclose(value, [0.0, LOG2], rtol=1e-6)
    np.testing.assert_allclose(moved, [INF, LOG2], rtol=1e-6)
    _, moved = way.forward(loss, at, np.array([0.0, 1.0], np.float32))
    np.testing.assert_allclose(moved, [0.0, LOG2], rtol=1e-6)
    np.testing.assert_allclose(way.reverse(loss, at, 1.0), [INF, LOG2], rtol=1e-6)
    np.testing.assert_allclose(way.reverse(loss, at, [0.0, 1.0]), [0.0, LOG2], rtol=1e-6)


@pytest.mark.parametrize("tangent", [1.2e-38, 1e-20, -1.0, 3e38])
def test_any_tangent_but_0_is_infinite(way, tangent):
    """From the smallest normal number on: some frameworks flush smaller numbers to 0."""
    loss, at = loss_of("cross_entropy", way, np.float32, "none"), TARGET.astype(np.float32)
    direction = np.zeros((2, 3), np.float32)
    direction[0, 0] = tangent
    _, moved = way.forward(loss, at, direction)
    np.testing.assert_array_equal(moved, [np.copysign(INF, tangent), 0.0])
