"""Measure the peak memory and time of xentx.linear_kl_divergence and of the naive computation.

    python benchmarks/divergence.py [--framework torch] [--shape 2048 768 50257]

The naive computation stores the logits of both layers. One call in a new process computes the
value, a mean, and its gradients with respect to the student's hidden and head. Peak memory is the
increase of the resident set during the call, without the arguments and the two gradients.
"""

import argparse
import json
import sys
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from _measure import added_peak, apart

TINY = (64, 8, 100)  # a first call loads libraries and starts threads
Call = Callable[[], Any]


def arrays(rows: int, features: int, classes: int) -> list[Any]:
    """Make hidden and head of a student and of a teacher."""
    rng = np.random.default_rng(0)
    shapes = 2 * ((rows, features), (classes, features))
    scales = 2 * (1.0, features**-0.5)
    return [
        np.float32(scale) * rng.standard_normal(shape, np.float32)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def of_numpy(name: str, *given: Any) -> Call:
    """NumPy: the textbook formula and its gradient."""
    import xentx

    if name == "xentx":
        return lambda: xentx.value_and_grad(xentx.linear_kl_divergence)(*given)

    def log_softmax(logits: Any) -> Any:
        logits = logits - logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def naive() -> Any:
        hidden, head, other, other_head = given
        less_p, less_q = log_softmax(hidden @ head.T), log_softmax(other @ other_head.T)
        q = np.exp(less_q)
        value = (q * (less_q - less_p)).sum(1).mean()
        slope = (np.exp(less_p) - q) / len(q)
        return value, slope @ head, slope.T @ hidden

    return naive


def of_torch(name: str, *given: Any) -> Call:
    """PyTorch: F.kl_div."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    import xentx

    hidden, head, other, other_head = map(torch.from_numpy, given)
    hidden.requires_grad_()
    head.requires_grad_()

    def naive() -> Any:
        less_p = F.log_softmax(hidden @ head.T, -1)
        less_q = F.log_softmax(other @ other_head.T, -1)
        return F.kl_div(less_p, less_q, reduction="batchmean", log_target=True)

    def call() -> Any:
        hidden.grad = head.grad = None
        value = (
            xentx.linear_kl_divergence(hidden, head, other, other_head)
            if name == "xentx"
            else naive()
        )
        value.backward()
        return value.item(), hidden.grad, head.grad

    return call


def of_jax(name: str, *given: Any) -> Call:
    """JAX under jit: optax.losses.kl_divergence_with_log_targets."""
    import jax
    import optax

    import xentx

    def naive(hidden: Any, head: Any, other: Any, other_head: Any) -> Any:
        less_p, less_q = (
            jax.nn.log_softmax(h @ w.T) for h, w in ((hidden, head), (other, other_head))
        )
        return optax.losses.kl_divergence_with_log_targets(less_p, less_q).mean()

    loss = xentx.linear_kl_divergence if name == "xentx" else naive
    ready = jax.block_until_ready(tuple(map(jax.numpy.asarray, given)))
    step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*ready).compile()
    return lambda: jax.tree.leaves(jax.block_until_ready(step(*ready)))


def of_tensorflow(name: str, *given: Any) -> Call:
    """TensorFlow eager: tf.nn.log_softmax and the sum of the terms."""
    import tensorflow as tf

    import xentx

    def naive(hidden: Any, head: Any, other: Any, other_head: Any) -> Any:
        less_p = tf.nn.log_softmax(tf.matmul(hidden, head, transpose_b=True))
        less_q = tf.nn.log_softmax(tf.matmul(other, other_head, transpose_b=True))
        terms = tf.exp(less_q) * (less_q - less_p)
        return tf.reduce_mean(tf.reduce_sum(terms, -1))

    loss = xentx.linear_kl_divergence if name == "xentx" else naive
    ready = tuple(map(tf.constant, given))
    tf.constant(0) + 0  # TensorFlow frees NumPy's arrays in its next operation

    def call() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(ready[:2])
            value = loss(*ready)
        return value, *tape.gradient(value, ready[:2])

    return call


FRAMEWORKS: dict[str, Callable[..., Call]] = {
    "numpy": of_numpy,
    "torch": of_torch,
    "jax": of_jax,
    "tensorflow": of_tensorflow,
}


def measure(framework: str, name: str, shape: list[int]) -> dict[str, float]:
    """Value, megabytes and seconds of a call."""
    make = FRAMEWORKS[framework]
    make(name, *arrays(*TINY))()
    call = make(name, *arrays(*shape))
    results: list[Any] = []
    seconds = [0.0]

    def timed() -> Any:
        seconds[0] = timeit.timeit(lambda: results.extend(call()), number=1)
        return results

    added = added_peak(timed)
    rows, features, classes = shape
    gradients = 4 * (rows + classes) * features
    return {
        "value": float(results[0]),
        "megabytes": (added - gradients) / 1e6,
        "seconds": seconds[0],
    }


def main() -> None:
    """Run the processes and print a line for each framework."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(FRAMEWORKS))
    parser.add_argument("--shape", type=int, nargs=3, default=[2048, 768, 50257])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    frameworks = options.framework or list(FRAMEWORKS)
    if options.worker:
        print(json.dumps(measure(frameworks[0], options.worker, options.shape)))  # noqa: T201
        return
    shape = [str(n) for n in options.shape]
    for framework in frameworks:
        ours, theirs = (
            apart(__file__, "--framework", framework, "--shape", *shape, "--worker", name)
            for name in ("xentx", "naive")
        )
        if abs(ours["value"] / theirs["value"] - 1) > 1e-4:
            sys.exit(f"{framework}: xentx is {ours['value']}, the naive way {theirs['value']}")
        print(  # noqa: T201
            f"{framework}: {ours['megabytes']:.0f} MB and {ours['seconds']:.1f} s; naive "
            f"{theirs['megabytes']:.0f} MB and {theirs['seconds']:.1f} s; "
            f"ratio of the memory {ours['megabytes'] / theirs['megabytes']:.3f}"
        )


if __name__ == "__main__":
    main()
