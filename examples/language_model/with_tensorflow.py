"""The model in TensorFlow."""

from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

import xentx
from text import RATE, Batch, Weights


def native(hidden: tf.Tensor, head: tf.Tensor, bias: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """TensorFlow's own loss, which stores all logits."""
    logits = tf.matmul(hidden, head, transpose_b=True) + bias
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits))


def ours(hidden: tf.Tensor, head: tf.Tensor, bias: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """The same loss with xentx, which stores the logits of 256 rows."""
    return xentx.linear_cross_entropy(hidden, head, target, bias=bias, chunk=256)


def train(
    start: Weights, batches: Iterable[Batch], loss: Callable[..., tf.Tensor]
) -> Iterator[float]:
    """Run gradient descent, and yield the loss of each step."""

    @tf.function
    def step(weights: Weights, context: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, Weights]:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            embedded = tf.gather(weights.embedding, context)
            embedded = tf.reshape(embedded, (-1, weights.inner.shape[0]))
            hidden = tf.tanh(embedded @ weights.inner)
            value = loss(hidden, weights.head, weights.bias, target)
        gradients = map(tf.convert_to_tensor, tape.gradient(value, weights))
        moved = (w - RATE * g for w, g in zip(weights, gradients, strict=True))
        return value, Weights(*moved)

    weights = Weights(*map(tf.constant, start))
    for batch in batches:
        value, weights = step(weights, *map(tf.constant, batch))
        yield float(value)
