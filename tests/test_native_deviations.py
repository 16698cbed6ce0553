"""Results of the frameworks' own losses that differ from xentx, in the pinned versions.

A test fails if a new release of a framework changes its results. The documentation of the
deviations must then be updated. `xentx.testing` tests the results of xentx in the same cases.
"""

import math

import numpy as np
import pytest

from xentx.testing import requested_frameworks

pytestmark = pytest.mark.pinned

B = np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
CONFIDENT = np.array([[20.0, 0.0]], np.float32)  # target 0: 2.06e-9
MASKED = np.array([[1.0, 2.0, -np.inf]], np.float32)
MASKED_TARGET = np.array([[0.25, 0.75, 0.0]], np.float32)
HALF_ROWS = 20_000  # rows with loss ln 162 = 5.09; the sum overflows in float16


def needs(framework):
    return pytest.mark.skipif(framework not in requested_frameworks(), reason="not requested")


@needs("torch")
class TestTorch:
    @staticmethod
    def loss_and_gradient(logits, target, **options):
        import torch

        logits = torch.tensor(logits, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(target), **options)
        loss.sum().backward()
        return loss.detach(), logits.grad

    def test_a_confident_row_loses_everything(self):
        loss, gradient = self.loss_and_gradient(CONFIDENT, [0])
        assert loss == 0
        assert gradient[0, 0] == 0
        assert gradient[0, 1] > 0  # the row does not sum to 0

    def test_nan_in_an_ignored_row_reaches_its_gradient(self):
        logits = np.array([B[0], [np.nan] * 3], np.float32)
        loss, gradient = self.loss_and_gradient(logits, [1, -100])
        assert loss.isfinite()
        assert gradient[1].isnan().all()

    @pytest.mark.parametrize("smoothing", [-0.1, math.nan])
    def test_a_smoothing_out_of_range_is_ignored(self, smoothing):
        loss, _ = self.loss_and_gradient(B, [1, 2], label_smoothing=smoothing)
        assert loss == self.loss_and_gradient(B, [1, 2])[0]

    def test_float16_mean_overflows(self):
        logits = np.zeros((HALF_ROWS, 162), np.float16)
        loss, _ = self.loss_and_gradient(logits, np.zeros(HALF_ROWS, np.int64))
        assert loss.isinf()

    def test_float16_sum_over_classes_overflows(self):
        loss, _ = self.loss_and_gradient(np.zeros((1, 65536), np.float16), [0])
        assert loss.isinf()

    def test_nothing_times_infinity_is_nan(self):
        assert self.loss_and_gradient(MASKED, MASKED_TARGET)[0].isnan()

    def test_a_weight_of_nothing_times_infinity_is_nan(self):
        import torch

        loss, _ = self.loss_and_gradient(MASKED, [2], weight=torch.tensor([1.0, 1.0, 0.0]))
        assert loss.isnan()

    def test_int32_targets_are_refused(self):
        with pytest.raises(RuntimeError, match="Long or Byte"):
            self.loss_and_gradient(B, np.array([1, 2], np.int32))

    def test_one_hot_is_not_the_index_in_a_weighted_mean(self):
        import torch

        weight = torch.tensor([1.0, 2.0, 3.0])
        hard, _ = self.loss_and_gradient(B, [1, 2], weight=weight)
        soft, _ = self.loss_and_gradient(B, np.eye(3, dtype=np.float32)[[1, 2]], weight=weight)
        np.testing.assert_allclose(hard, 0.3758147, rtol=1e-6)
        np.testing.assert_allclose(soft, 0.9395369, rtol=1e-6)

    def test_softmax_runs_over_time_instead_of_classes(self):
        """The shape is (N, T, C) with T == C. The softmax runs over T, without an error."""
        logits = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
        target = np.array([[0, 1, 2], [2, 1, 0]])
        silent, _ = self.loss_and_gradient(logits, target)
        meant, _ = self.loss_and_gradient(logits.reshape(6, 3), target.reshape(6))
        assert abs(silent - meant) > 1e-3

    def test_zero_weights_make_a_nan_gradient(self):
        import torch

        weight = torch.tensor([1.0, 0.0, 0.0])
        assert self.loss_and_gradient(B, [1, 2], weight=weight)[1].isnan().all()

    def test_chunked_linear_loss_has_a_silently_zero_jvp(self):
        import torch
        from torch.nn.functional import linear_cross_entropy

        options = torch.nn.LinearCrossEntropyOptions()
        head, target = torch.eye(3), torch.tensor([1, 2])
        _, tangent = torch.func.jvp(
            lambda x: linear_cross_entropy(x, head, target, options=options),
            (torch.tensor(B),),
            (torch.tensor(B),),
        )
        assert tangent == 0
        _, right = torch.func.jvp(
            lambda x: torch.nn.functional.cross_entropy(x, target),
            (torch.tensor(B),),
            (torch.tensor(B),),
        )
        assert right != 0


@needs("jax")
class TestOptaxAndJAX:
    @staticmethod
    def by_index(logits, target):
        import jax
        import optax

        def loss(x):
            return optax.softmax_cross_entropy_with_integer_labels(x, np.asarray(target))

        logits = jax.numpy.asarray(logits)
        return loss(logits), jax.grad(lambda x: loss(x).sum())(logits)

    def test_a_negative_label_wraps(self):
        assert self.by_index(B, [-1, 2])[0][0] == self.by_index(B, [2, 2])[0][0]

    def test_a_label_beyond_the_classes_has_a_finite_gradient(self):
        loss, gradient = self.by_index(B, [3, 2])
        assert np.isnan(loss[0])
        assert np.all(np.isfinite(gradient))

    def test_a_confident_row_loses_everything(self):
        loss, gradient = self.by_index(CONFIDENT, [0])
        assert loss[0] == 0
        assert gradient[0, 0] == 0

    def test_huge_equal_logits_have_no_loss(self):
        loss, _ = self.by_index(np.array([[3e38, 3e38]], np.float32), [0])
        assert loss[0] == 0  # ln 2

    def test_an_offset_costs_digits(self):
        loss, _ = self.by_index(np.array([[10001.0, 10002.0, 10000.5]], np.float32), [1])
        assert abs(loss[0] - 0.46436878) > 1e-4

    def test_infinity_elsewhere_is_infinite_and_not_nan(self):
        assert np.isinf(self.by_index(np.array([[1.0, np.inf, 0.0]], np.float32), [0])[0][0])

    def test_a_target_broadcasts(self):
        import optax

        loss = optax.softmax_cross_entropy_with_integer_labels(B, np.array([1]))
        assert loss.shape == (2,)
        assert optax.softmax_cross_entropy(B, np.eye(3, dtype=np.float32)[1]).shape == (2,)

    def test_nothing_times_infinity_is_nan_unless_safe(self):
        import optax

        assert np.isnan(optax.softmax_cross_entropy(MASKED, MASKED_TARGET)[0])
        assert np.isfinite(optax.safe_softmax_cross_entropy(MASKED, MASKED_TARGET)[0])

    def test_jax_wraps_and_overflows_too(self):
        import jax

        log_probs = jax.nn.log_softmax(jax.numpy.asarray(B))
        taken = jax.numpy.take_along_axis(log_probs, jax.numpy.array([[-1], [2]]), -1)
        assert taken[0, 0] == log_probs[0, 2]
        zeros = jax.numpy.zeros((1, 65536), "float16")
        assert np.isinf(jax.nn.log_softmax(zeros)[0, 0])


@needs("tensorflow")
class TestTensorFlowAndKeras:
    @staticmethod
    def dense(logits, target):
        import tensorflow as tf

        logits = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.nn.softmax_cross_entropy_with_logits(target, logits)
        return loss, tape.gradient(loss, logits)

    def test_dense_gradient_takes_the_target_to_sum_to_one(self):
        """The gradient is ``p - y``. The derivative of the loss would be ``2 p - y``."""
        loss, gradient = self.dense(B[:1], np.array([[0.0, 2.0, 0.0]], np.float32))
        np.testing.assert_allclose(loss, [0.9287376], rtol=1e-6)
        np.testing.assert_allclose(gradient, [[0.231224, -1.371468, 0.140244]], atol=1e-6)

    def test_nothing_times_infinity_is_nan(self):
        assert np.isnan(self.dense(MASKED, MASKED_TARGET)[0][0])

    def test_a_confident_row_loses_everything(self):
        import tensorflow as tf

        assert tf.nn.sparse_softmax_cross_entropy_with_logits([0], CONFIDENT)[0] == 0

    def test_out_of_range_is_an_error_or_nan(self):
        import tensorflow as tf

        def loss(target):
            return tf.nn.sparse_softmax_cross_entropy_with_logits(target, B)

        with pytest.raises(tf.errors.InvalidArgumentError, match="outside the valid range"):
            loss(tf.constant([3, 2]))
        assert np.isnan(tf.function(loss, jit_compile=True)(tf.constant([3, 2]))[0])

    def test_a_dense_target_broadcasts(self):
        import tensorflow as tf

        one_row = np.eye(3, dtype=np.float32)[1:2]
        assert tf.nn.softmax_cross_entropy_with_logits(one_row, B).shape == (2,)

    def test_float16_mean_overflows(self):
        import tensorflow as tf

        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.zeros(HALF_ROWS, tf.int32), tf.zeros((HALF_ROWS, 162), tf.float16)
        )
        assert np.isinf(tf.reduce_mean(losses))

    def test_keras_smooths_by_the_wrong_number_of_classes(self):
        """With axis=1 it divides by the length of the last axis."""
        import keras

        logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
        target = np.eye(3, dtype=np.float32)[np.zeros((2, 5), int)]
        options = {"from_logits": True, "label_smoothing": 0.1}
        last = keras.losses.CategoricalCrossentropy(**options)(target, logits.transpose(0, 2, 1))
        first = keras.losses.CategoricalCrossentropy(axis=1, **options)(
            target.transpose(0, 2, 1), logits
        )
        assert abs(float(last) - float(first)) > 1e-3

    def test_keras_rounds_class_indices(self):
        """In bfloat16, class 257 is rounded to 256."""
        import keras

        logits = np.zeros((1, 300), np.float32)
        logits[0, 256] = 5.0
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
        assert float(loss(np.array([257]), logits)) == float(loss(np.array([256]), logits))

    def test_keras_mean_divides_by_the_rows(self):
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        value = loss(np.array([1, 2]), B, sample_weight=np.array([1.0, 3.0]))
        np.testing.assert_allclose(value, 0.707352, rtol=1e-5)

    def test_keras_mean_of_nothing_is_empty(self):
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        assert loss(np.zeros(0, np.int64), np.zeros((0, 3), np.float32)).shape == (0,)

    def test_keras_clips_probabilities(self):
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy()
        value = loss(np.array([1]), np.array([[1.0, 0.0]], np.float32))
        np.testing.assert_allclose(value, 16.118095, rtol=1e-6)


class TestSciPyAndScikitLearn:
    def test_a_confident_row_loses_everything(self):
        from scipy.special import log_softmax

        assert log_softmax(CONFIDENT, axis=-1)[0, 0] == 0

    def test_float16_sum_over_classes_overflows(self):
        from scipy.special import log_softmax

        with np.errstate(over="ignore"):
            assert np.isinf(log_softmax(np.zeros((1, 65536), np.float16), axis=-1)[0, 0])

    def test_log_loss_clips(self):
        from sklearn.metrics import log_loss

        value = log_loss([1], [[1.0, 0.0]], labels=[0, 1])
        np.testing.assert_allclose(value, -math.log(np.finfo(np.float64).eps), rtol=1e-6)

    def test_log_loss_mean_divides_by_the_sample_weights(self):
        from sklearn.metrics import log_loss

        probabilities = np.exp(B) / np.exp(B).sum(-1, keepdims=True)
        value = log_loss([1, 2], probabilities, labels=[0, 1, 2], sample_weight=[1.0, 3.0])
        np.testing.assert_allclose(value, 0.353676, rtol=1e-5)
