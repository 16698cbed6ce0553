"""Time the three products of a last layer in each framework, for several numbers of rows.

    python benchmarks/products.py [--framework tensorflow]

`linear_cross_entropy` computes its rows in chunks. With few rows, the products are small, which are
slower in the frameworks' BLAS, and each chunk adds to the gradient of the head. Many rows need
memory for their logits. The results for (rows, 1024) x (128256, 1024) are the reason for chunks of
512 rows.
"""

import argparse
import sys
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

FEATURES, CLASSES = 1024, 128256
ROWS = (128, 256, 512, 1024, 2048)
Products = tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]


def numpy_products(hidden: Any, head: Any, slope: Any) -> Products:
    """The products in NumPy."""
    return lambda: hidden @ head.T, lambda: slope @ head, lambda: slope.T @ hidden


def torch_products(hidden: Any, head: Any, slope: Any) -> Products:
    """The products in PyTorch, which adds to the gradient of the head in place."""
    import torch

    hidden, head, slope = map(torch.from_numpy, (hidden, head, slope))
    total = torch.zeros_like(head)
    return lambda: hidden @ head.T, lambda: slope @ head, lambda: total.addmm_(slope.T, hidden)


def jax_products(hidden: Any, head: Any, slope: Any) -> Products:
    """The products in JAX, under jit."""
    import jax
    import jax.numpy as jnp

    hidden, head, slope = map(jnp.asarray, (hidden, head, slope))
    logits, product, pull = map(
        jax.jit, (lambda x, w: x @ w.T, lambda g, w: g @ w, lambda g, x: g.T @ x)
    )
    return (
        lambda: logits(hidden, head).block_until_ready(),
        lambda: product(slope, head).block_until_ready(),
        lambda: pull(slope, hidden).block_until_ready(),
    )


def tensorflow_products(hidden: Any, head: Any, slope: Any) -> Products:
    """The products in TensorFlow, eager."""
    import tensorflow as tf

    hidden, head, slope = map(tf.constant, (hidden, head, slope))
    return (
        lambda: tf.matmul(hidden, head, transpose_b=True),
        lambda: tf.matmul(slope, head),
        lambda: tf.matmul(slope, hidden, transpose_a=True),
    )


PRODUCTS: dict[str, Callable[[Any, Any, Any], Products]] = {
    "numpy": numpy_products,
    "torch": torch_products,
    "jax": jax_products,
    "tensorflow": tensorflow_products,
}


def main() -> None:
    """Print a table for each framework."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(PRODUCTS))
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    head = rng.standard_normal((CLASSES, FEATURES), np.float32)
    console = Console(width=None if sys.stdout.isatty() else 100)
    for framework in options.framework or PRODUCTS:
        table = Table(framework, "logits", "by hidden", "by head", "all three", box=box.SIMPLE)
        for rows in ROWS:
            hidden = rng.standard_normal((rows, FEATURES), np.float32)
            slope = rng.standard_normal((rows, CLASSES), np.float32)
            seconds = [
                min(timeit.repeat(product, number=1, repeat=3))
                for product in PRODUCTS[framework](hidden, head, slope)
            ]
            work = 2 * rows * FEATURES * CLASSES / 1e9
            rates = [work / s for s in seconds] + [3 * work / sum(seconds)]
            table.add_row(f"{rows} rows", *(f"{rate:.0f} GFLOP/s" for rate in rates))
        console.print(table)


if __name__ == "__main__":
    main()
