"""Time the parts of a call for a small problem: those of xentx, and those of the framework.

    python benchmarks/overhead.py [--framework torch] [--out benchmarks/overhead.json]

For ten classes the kernel computes the loss in one or two microseconds. The rest of the time is
overhead of the framework and of xentx. Each step is timed alone, in one process for each framework.
The result is the minimum of several repeats of `timeit`, since disturbances only add time.

`docs/generate_performance.py` makes a table of the JSON.
"""

import argparse
import json
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _measure import apart, machine

SHAPE = (32, 10)
Steps = dict[str, Callable[[], Any]]


def arrays() -> tuple[Any, Any]:
    """Return logits and class indices."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(SHAPE, np.float32), rng.integers(0, SHAPE[1], SHAPE[0])


def numpy_steps() -> Steps:
    """NumPy: the kernel, and the checks before it."""
    import xentx

    x, t = arrays()
    both = xentx.value_and_grad(xentx.cross_entropy)
    return {
        "np.empty_like of the logits": lambda: np.empty_like(x),
        "xentx forward": lambda: xentx.cross_entropy(x, t),
        "xentx.value_and_grad": lambda: both(x, t),
    }


def torch_steps() -> Steps:
    """PyTorch: its allocation, its autograd and its compiled calls, without a loss and with one."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    import xentx

    x, t = map(torch.from_numpy, arrays())
    leaf = x.clone().requires_grad_()
    scalar = torch.empty(())

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return torch.empty_like(scalar)

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            return torch.empty_like(x)

    def backward(loss: Callable[[Any], Any]) -> Callable[[], Any]:
        def call() -> None:
            leaf.grad = None
            loss(leaf).backward()

        return call

    def compiled(loss: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(loss, dynamic=False)

    nothing, ours, theirs = map(compiled, (lambda x: x + 1, xentx.cross_entropy, F.cross_entropy))
    return {
        "torch.empty_like of a number": lambda: torch.empty_like(scalar),
        "xentx forward": lambda: xentx.cross_entropy(x, t),
        "F.cross_entropy forward": lambda: F.cross_entropy(x, t),
        "an autograd.Function of nothing, forward + backward": backward(Nothing.apply),
        "xentx forward + backward": backward(lambda x: xentx.cross_entropy(x, t)),
        "F.cross_entropy forward + backward": backward(lambda x: F.cross_entropy(x, t)),
        "x + 1, torch.compile": lambda: nothing(x),
        "xentx forward, torch.compile": lambda: ours(x, t),
        "F.cross_entropy forward, torch.compile": lambda: theirs(x, t),
        "x + 1 and its sum, torch.compile, forward + backward": backward(
            compiled(lambda x: (x + 1).sum())
        ),
        "xentx forward + backward, torch.compile": backward(lambda x: ours(x, t)),
        "F.cross_entropy forward + backward, torch.compile": backward(lambda x: theirs(x, t)),
    }


def jax_steps() -> Steps:
    """JAX: compiled calls without a loss, and with one."""
    import jax
    import jax.numpy as jnp
    import optax

    import xentx

    x, t = map(jnp.asarray, arrays())

    def theirs(x: Any, t: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(x, t).mean()

    def jitted(function: Callable[..., Any]) -> Callable[[], Any]:
        step = jax.jit(function)
        return lambda: jax.block_until_ready(step(x, t))

    def nothing(x: Any, t: Any) -> Any:
        return x[0, 0]

    def nothing_and_gradient(x: Any, t: Any) -> Any:
        return x[0, 0], x + 1

    return {
        "x[0, 0] under jit": jitted(nothing),
        "xentx forward": jitted(xentx.cross_entropy),
        "optax forward": jitted(theirs),
        "x[0, 0] and x + 1 under jit": jitted(nothing_and_gradient),
        "xentx forward + backward": jitted(jax.value_and_grad(xentx.cross_entropy)),
        "optax forward + backward": jitted(jax.value_and_grad(theirs)),
    }


def tensorflow_steps() -> Steps:
    """TensorFlow: a tape and a tf.function with one operation, and with the losses."""
    import tensorflow as tf

    import xentx

    x, t = map(tf.constant, arrays())

    def theirs(x: Any, t: Any) -> Any:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(t, x))

    def nothing(x: Any, t: Any) -> Any:
        return tf.negative(x)

    def taped(loss: Callable[..., Any]) -> Callable[..., Any]:
        def step(x: Any, t: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(x, t)
            return value, tape.gradient(value, x)

        return step

    def timed(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: function(x, t)

    ways = {
        "": lambda function: function,
        ", tf.function": tf.function,
        ", XLA": lambda function: tf.function(function, jit_compile=True),
    }

    def ours(x: Any, t: Any) -> Any:
        return xentx.cross_entropy(x, t)

    losses = {"-x": nothing, "xentx": ours, "tf.nn.sparse": theirs}
    steps = {
        f"{name} {passes}{how}": timed(way(make(loss)))
        for how, way in ways.items()
        for passes, make in (("forward", lambda loss: loss), ("forward + backward", taped))
        for name, loss in losses.items()
    }
    both = xentx.value_and_grad(xentx.cross_entropy)
    return {**steps, "xentx.value_and_grad": timed(both)}


STEPS: dict[str, Callable[[], Steps]] = {
    "numpy": numpy_steps,
    "torch": torch_steps,
    "jax": jax_steps,
    "tensorflow": tensorflow_steps,
}


def measure(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    for _ in range(3):
        call()
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    return min(timer.repeat(7, max(1, number // 4))) / max(1, number // 4)


def main() -> None:
    """Run the processes, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/overhead.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = {name: measure(call) for name, call in STEPS[options.worker]().items()}
        print(json.dumps(found))  # noqa: T201 -- `apart` reads it
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    frameworks = options.framework or list(STEPS)
    report = {
        "machine": machine(),
        "shape": SHAPE,
        "frameworks": {name: apart(__file__, "--worker", name) for name in frameworks},
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for framework, steps in report["frameworks"].items():
        table = Table(framework, "microseconds", box=box.SIMPLE)
        for name, seconds in steps.items():
            table.add_row(name, f"{seconds * 1e6:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
