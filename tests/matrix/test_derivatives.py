"""Derivatives of all arguments and orders, with the frameworks' own gradient checkers.

`xentx.testing` compares gradients with respect to the logits with true values. The tests here check
that each framework's autodiff composes these gradients and differentiates them again.
"""

import shutil

import numpy as np
import pytest

import xentx
from xentx.testing import requested_frameworks

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(0, 2, (4, 5))
LOGITS[0, :2] = 3.0  # tied maxima
LOGITS[1] = 0.0  # all tied, as at initialisation
TARGET = np.array([1, 2, 0, -100])
SOFT = RNG.gamma(1.0, size=(4, 5))
WEIGHT = RNG.uniform(0.5, 2, 5)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, 4)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.05, "logit_softcap": 6.0, "temperature": 1.5}
REDUCTIONS = ["none", "mean", "sum", "weighted_mean"]


def hard(reduction, target):
    """Return a loss as a function of the logits and both weights."""

    def loss(logits, weight, sample_weight):
        return xentx.cross_entropy(
            logits,
            target,
            weight=weight,
            sample_weight=sample_weight,
            reduction=reduction,
            **OPTIONS,
        )

    return loss


def soft(reduction):
    """Return a loss as a function of the logits, the target and both weights."""

    def loss(logits, target, weight, sample_weight):
        return xentx.cross_entropy(
            logits,
            target,
            weight=weight,
            sample_weight=sample_weight,
            reduction=reduction,
            **OPTIONS,
        )

    return loss


@pytest.mark.skipif("torch" not in requested_frameworks(), reason="not requested")
class TestTorch:
    """torch.autograd.gradcheck and gradgradcheck, and torch.func."""

    @staticmethod
    def variables(*arrays):
        import torch

        return tuple(torch.tensor(array, requires_grad=True) for array in arrays)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_gradcheck(self, reduction):
        import torch

        for loss, arrays in (
            (hard(reduction, torch.tensor(TARGET)), (LOGITS, WEIGHT, SAMPLE_WEIGHT)),
            (soft(reduction), (LOGITS, SOFT, WEIGHT, SAMPLE_WEIGHT)),
        ):
            variables = self.variables(*arrays)
            assert torch.autograd.gradcheck(loss, variables, check_forward_ad=True)
            assert torch.autograd.gradgradcheck(loss, variables)

    def test_gradcheck_of_the_steps(self):
        import torch

        variables = self.variables(LOGITS)
        assert torch.autograd.gradcheck(xentx.log_softmax, variables, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(xentx.log_softmax, variables)
        variables = self.variables(LOGITS, SOFT, WEIGHT)

        def nll(log_probs, target, weight):
            return xentx.nll_loss(log_probs, target, weight=weight)

        assert torch.autograd.gradcheck(nll, variables, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(nll, variables)

    def test_ignored_nan_enters_no_derivative(self):
        import torch

        logits = torch.tensor(LOGITS)
        logits[3] = torch.nan
        logits.requires_grad_()
        loss = xentx.cross_entropy(logits, torch.tensor(TARGET))
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        (second,) = torch.autograd.grad(gradient[0, 0], logits)
        assert torch.all(gradient[3] == 0)
        assert torch.all(torch.isfinite(second))

    @pytest.mark.parametrize("outer", ["jacfwd", "jacrev"])
    @pytest.mark.parametrize("inner", ["jacfwd", "jacrev"])
    def test_hessian(self, outer, inner):
        """Nested forward mode through an autograd.Function would return 0 without an error."""
        import torch

        target = torch.tensor([1, 2, 0, 1])

        def nested(loss):
            return getattr(torch.func, outer)(getattr(torch.func, inner)(loss))

        ours = nested(lambda x: xentx.cross_entropy(x, target))(torch.tensor(LOGITS))
        native = nested(lambda x: torch.nn.functional.cross_entropy(x, target))
        torch.testing.assert_close(ours, native(torch.tensor(LOGITS)))

    def test_per_sample_gradients(self):
        import torch

        def loss(row, index):
            return xentx.cross_entropy(row, index)

        logits, target = torch.tensor(LOGITS), torch.tensor([1, 2, 0, 1])
        ours = torch.func.vmap(torch.func.grad(loss))(logits, target)
        whole = torch.func.grad(lambda x: xentx.cross_entropy(x, target, reduction="sum"))(logits)
        torch.testing.assert_close(ours, whole)

    def test_retained_graph(self):
        """A second backward pass adds the same gradient again."""
        import torch

        (logits,) = self.variables(LOGITS)
        loss = xentx.cross_entropy(logits, torch.tensor(TARGET))
        loss.backward(retain_graph=True)
        once = logits.grad.clone()
        loss.backward()
        torch.testing.assert_close(logits.grad, 2 * once)

    @pytest.mark.skipif(
        not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs one"
    )
    def test_compile(self):
        """Each function compiles to one graph."""
        import torch

        import xentx_torch

        target = torch.tensor(TARGET)
        for function in (xentx.cross_entropy, xentx_torch.cross_entropy):
            (eager,), (compiled,) = self.variables(LOGITS), self.variables(LOGITS)
            graph = torch.compile(lambda x, f=function: f(x, target, **OPTIONS), fullgraph=True)
            value = graph(compiled)
            value.backward()
            expected = function(eager, target, **OPTIONS)
            expected.backward()
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.skipif("jax" not in requested_frameworks(), reason="not requested")
class TestJAX:
    """jax.test_util.check_grads in forward and reverse mode, up to second order.

    Compiling the second order takes half a minute. The other reductions differ from "weighted_mean"
    only by a factor, so they are checked to first order.
    """

    @pytest.mark.parametrize(
        ("reduction", "order"), [("none", 1), ("mean", 1), ("sum", 1), ("weighted_mean", 2)]
    )
    def test_check_grads(self, reduction, order):
        import jax
        from jax.test_util import check_grads

        def check(loss, *arrays):
            # Compiling the whole loss is faster than compiling each operation.
            check_grads(jax.jit(loss), [jax.numpy.asarray(a) for a in arrays], order=order)

        from xentx_jax.testing import enable_x64

        with enable_x64():
            target = jax.numpy.asarray(TARGET)
            check(hard(reduction, target), LOGITS, WEIGHT, SAMPLE_WEIGHT)
            check(soft(reduction), LOGITS, SOFT, WEIGHT, SAMPLE_WEIGHT)
            check(xentx.log_softmax, LOGITS)
            check(xentx.nll_loss, LOGITS, SOFT)

    def test_transformations(self):
        import jax

        logits = jax.numpy.asarray(LOGITS[:3], "float32")
        target = jax.numpy.asarray(TARGET[:3])

        def row_loss(row, index):
            return xentx.cross_entropy(row, index)

        whole = jax.grad(lambda x: xentx.cross_entropy(x, target, reduction="sum"))(logits)
        mapped = jax.jit(jax.vmap(jax.grad(row_loss)))(logits, target)
        np.testing.assert_allclose(mapped, whole, rtol=1e-6)

        def loss(x):
            return xentx.cross_entropy(x, target)

        reverse, forward = (
            jax.jacrev(jax.jacrev(loss))(logits),
            jax.jacfwd(jax.jacfwd(loss))(logits),
        )
        np.testing.assert_allclose(reverse, forward, rtol=1e-5, atol=1e-7)
        value, linear = jax.linearize(loss, logits)
        np.testing.assert_allclose(value, loss(logits))
        np.testing.assert_allclose(
            linear(jax.numpy.ones_like(logits)), 0.0, atol=1e-7
        )  # adding a constant to the logits does not change the loss


@pytest.mark.skipif("tensorflow" not in requested_frameworks(), reason="not requested")
class TestTensorFlow:
    """tf.test.compute_gradient, nested tapes, and the compiled forms."""

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_compute_gradient(self, reduction):
        import tensorflow as tf

        for loss, arrays in (
            (hard(reduction, tf.constant(TARGET)), (LOGITS, WEIGHT, SAMPLE_WEIGHT)),
            (soft(reduction), (LOGITS, SOFT, WEIGHT, SAMPLE_WEIGHT)),
        ):
            inputs = [tf.constant(array) for array in arrays]
            theory, numeric = tf.test.compute_gradient(loss, inputs)
            for ours, theirs in zip(theory, numeric, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_second_order(self):
        import tensorflow as tf

        def gradients(logits, target, weight, sample_weight):
            inputs = (logits, target, weight, sample_weight)
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                value = soft("mean")(*inputs)
            return tape.gradient(value, inputs)

        inputs = [tf.constant(array) for array in (LOGITS, SOFT, WEIGHT, SAMPLE_WEIGHT)]
        for i in range(4):
            theory, numeric = tf.test.compute_gradient(lambda *x, i=i: gradients(*x)[i], inputs)
            for ours, theirs in zip(theory, numeric, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}], ids=["graph", "XLA"])
    def test_function_of_unknown_batch(self, compiled):
        """One trace for every batch size, with AutoGraph, without warnings."""
        import tensorflow as tf

        signature = [tf.TensorSpec([None, 5], tf.float32), tf.TensorSpec([None], tf.int64)]

        @tf.function(input_signature=signature, **compiled)
        def step(logits, target):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = xentx.cross_entropy(logits, target, **OPTIONS)
            return value, tape.gradient(value, logits)

        for rows in (4, 2):
            logits, target = tf.constant(LOGITS[:rows], tf.float32), tf.constant(TARGET[:rows])
            value, gradient = step(logits, target)
            own = xentx.value_and_grad(xentx.cross_entropy)
            expected = own(LOGITS[:rows].astype(np.float32), TARGET[:rows], **OPTIONS)
            np.testing.assert_allclose(value, expected[0], rtol=1e-6)
            np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-8)

    def test_variable(self):
        import tensorflow as tf

        variable = tf.Variable(LOGITS)
        with tf.GradientTape() as tape:
            value = xentx.cross_entropy(variable, TARGET)
        expected = xentx.value_and_grad(xentx.cross_entropy)(LOGITS, TARGET)[1]
        np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-12)
