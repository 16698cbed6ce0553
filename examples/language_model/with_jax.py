"""The model in JAX."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import optax

import xentx
from text import RATE, Batch, Weights


def native(hidden: jax.Array, head: jax.Array, bias: jax.Array, target: jax.Array) -> jax.Array:
    """Optax's loss, which stores all logits."""
    logits = hidden @ head.T + bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def ours(hidden: jax.Array, head: jax.Array, bias: jax.Array, target: jax.Array) -> jax.Array:
    """The same loss with xentx, which stores the logits of 256 rows."""
    return xentx.linear_cross_entropy(hidden, head, target, bias=bias, chunk=256)


def train(
    start: Weights, batches: Iterable[Batch], loss: Callable[..., jax.Array]
) -> Iterator[float]:
    """Run gradient descent, and yield the loss of each step."""

    def value_of(weights: Weights, context: jax.Array, target: jax.Array) -> jax.Array:
        embedded = weights.embedding[context].reshape(len(context), -1)
        hidden = jnp.tanh(embedded @ weights.inner)
        return loss(hidden, weights.head, weights.bias, target)

    @jax.jit
    def step(weights: Weights, *batch: jax.Array) -> tuple[jax.Array, Weights]:
        value, gradients = jax.value_and_grad(value_of)(weights, *batch)
        return value, jax.tree.map(lambda w, g: w - RATE * g, weights, gradients)

    weights = jax.tree.map(jnp.asarray, start)
    for batch in batches:
        value, weights = step(weights, *batch)
        yield value.item()
