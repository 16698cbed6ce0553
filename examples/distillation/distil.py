"""Distil a small character model from a larger one, in PyTorch, JAX and TensorFlow.

    python examples/distillation/distil.py [--framework torch] [--steps 300]

A teacher learns to predict the next character of Python's own documentation. Then a student with
fewer features learns the teacher's predictions by `xentx.linear_kl_divergence`, which stores the
logits of neither. The text, the batches and the initial weights are the same in each framework, so
that the curves of losses coincide.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

import xentx

CONTEXT = 8  # number of characters from which the next one is predicted
WIDTH = 16  # size of the embedding of a character
ROWS = 256  # size of a batch
RATE = 0.5  # learning rate of gradient descent
TEMPERATURE = 2.0
TEACHER, STUDENT = 256, 32  # sizes of the hidden layers


class Weights(NamedTuple):
    """The weights of a model, as arrays of any framework."""

    embedding: Any  # (classes, WIDTH)
    inner: Any  # (CONTEXT * WIDTH, features)
    head: Any  # (classes, features)
    bias: Any  # (classes,)


def indices(text: str) -> tuple[int, np.ndarray]:
    """Return the number of different characters, and the text as indices of them."""
    alphabet, text = np.unique(list(text), return_inverse=True)
    return len(alphabet), text


def batches(text: np.ndarray, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw contexts, ``(ROWS, CONTEXT)``, and the character that follows each."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        ends = rng.integers(CONTEXT, len(text), ROWS)
        yield text[ends[:, None] + np.arange(-CONTEXT, 0)], text[ends]


def initial(classes: int, features: int) -> Weights:
    """Draw the initial weights."""
    rng = np.random.default_rng(features)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return np.float32(scale) * rng.standard_normal(shape, np.float32)

    return Weights(
        normal(classes, WIDTH, scale=1.0),
        normal(CONTEXT * WIDTH, features, scale=(CONTEXT * WIDTH) ** -0.5),
        normal(classes, features, scale=features**-0.5),
        np.zeros(classes, np.float32),
    )


class Torch:
    """The model and a step of gradient descent in PyTorch."""

    def __init__(self) -> None:
        import torch

        self.torch, self.array = torch, torch.from_numpy

    def hidden(self, weights: Weights, context: Any) -> Any:
        """Return the input of the last layer."""
        embedded = weights.embedding[context].flatten(1)
        return self.torch.tanh(embedded @ weights.inner)

    def stepper(self, loss: Callable[..., Any]) -> Callable[..., tuple[Any, Weights]]:
        """Return a function of weights and batch: the loss, and the new weights."""

        def step(weights: Weights, *batch: Any) -> tuple[Any, Weights]:
            leaves = Weights(*(w.detach().requires_grad_() for w in weights))
            value = loss(leaves, *batch)
            gradients = self.torch.autograd.grad(value, leaves)
            moved = (w.detach() - RATE * g for w, g in zip(leaves, gradients, strict=True))
            return value.detach(), Weights(*moved)

        return step


class Jax:
    """The model and a step of gradient descent in JAX."""

    def __init__(self) -> None:
        import jax

        self.jax, self.array = jax, jax.numpy.asarray

    def hidden(self, weights: Weights, context: Any) -> Any:
        """Return the input of the last layer."""
        embedded = weights.embedding[context].reshape(len(context), -1)
        return self.jax.numpy.tanh(embedded @ weights.inner)

    def stepper(self, loss: Callable[..., Any]) -> Callable[..., tuple[Any, Weights]]:
        """Return a function of weights and batch: the loss, and the new weights."""

        def step(weights: Weights, *batch: Any) -> tuple[Any, Weights]:
            value, gradients = self.jax.value_and_grad(loss)(weights, *batch)
            return value, self.jax.tree.map(lambda w, g: w - RATE * g, weights, gradients)

        return self.jax.jit(step)


class TensorFlow:
    """The model and a step of gradient descent in TensorFlow."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.tf, self.array = tf, tf.constant

    def hidden(self, weights: Weights, context: Any) -> Any:
        """Return the input of the last layer."""
        embedded = self.tf.gather(weights.embedding, context)
        embedded = self.tf.reshape(embedded, (-1, CONTEXT * WIDTH))
        return self.tf.tanh(embedded @ weights.inner)

    def stepper(self, loss: Callable[..., Any]) -> Callable[..., tuple[Any, Weights]]:
        """Return a function of weights and batch: the loss, and the new weights."""

        def step(weights: Weights, *batch: Any) -> tuple[Any, Weights]:
            with self.tf.GradientTape() as tape:
                tape.watch(weights)
                value = loss(weights, *batch)
            gradients = map(self.tf.convert_to_tensor, tape.gradient(value, weights))
            moved = (w - RATE * g for w, g in zip(weights, gradients, strict=True))
            return value, Weights(*moved)

        return self.tf.function(step)


FRAMEWORKS = {"torch": Torch, "jax": Jax, "tensorflow": TensorFlow}


def run(name: str, steps: int, document: str) -> tuple[list[float], list[float]]:
    """Train the teacher and the student. Return the losses of both."""
    framework = FRAMEWORKS[name]()
    classes, text = indices(document)

    def train(features: int, loss: Callable[..., Any]) -> tuple[Weights, list[float]]:
        step, losses = framework.stepper(loss), []
        weights = Weights(*map(framework.array, initial(classes, features)))
        for batch in batches(text, steps):
            value, weights = step(weights, *map(framework.array, batch))
            losses.append(float(value))
        return weights, losses

    def learn(weights: Weights, context: Any, target: Any) -> Any:
        hidden = framework.hidden(weights, context)
        return xentx.linear_cross_entropy(hidden, weights.head, target, bias=weights.bias)

    teacher, learned = train(TEACHER, learn)

    def imitate(weights: Weights, context: Any, _: Any) -> Any:
        return xentx.linear_kl_divergence(
            framework.hidden(weights, context),
            weights.head,
            framework.hidden(teacher, context),
            teacher.head,
            bias=weights.bias,
            reference_bias=teacher.bias,
            temperature=TEMPERATURE,
        )

    _, imitated = train(STUDENT, imitate)
    return learned, imitated


def main() -> None:
    """Train in the chosen or the installed frameworks, and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(FRAMEWORKS))
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    installed = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]
    document = " ".join(topics.values())
    chosen = options.framework or installed
    curves = {name: run(name, options.steps, document) for name in chosen}
    for name, (learned, imitated) in curves.items():
        print(
            f"{name}: cross-entropy of the teacher {learned[0]:.4f} to {learned[-1]:.4f}, "
            f"divergence of the student {imitated[0]:.6f} to {imitated[-1]:.6f}"
        )
    first, *others = curves.values()
    apart = [np.abs(np.subtract(first, curve)).max() for curve in others]
    if apart:
        print(f"largest difference between the curves: {max(apart):.1e}")


if __name__ == "__main__":
    main()
