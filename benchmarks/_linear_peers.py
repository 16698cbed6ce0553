"""Candidates of linear.py: for each framework, xentx, its peers, and three matrix products.

A candidate takes a problem and returns a call that computes the loss and its gradients with respect
to both factors. The results are ready when the call returns. Ahead-of-time compilation is done
before.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

FLOOR = "three products"
# The floor computes blocks of rows, since logits of all rows would need new memory. Where results
# cannot be written to given memory, it also computes blocks of classes, which are small enough for
# malloc to reuse the memory.
BLOCK, CLASSES = 512, 4096


@dataclass(frozen=True)
class Problem:
    """The sizes and the dtype of a last layer."""

    rows: int
    features: int
    classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.rows} x {self.features} x {self.classes} {self.dtype}"

    @property
    def operations(self) -> int:
        """Additions and multiplications of three matrix products."""
        return 6 * self.rows * self.features * self.classes

    @property
    def gradient_bytes(self) -> int:
        """Bytes of both gradients."""
        width = 2 if self.dtype == "bfloat16" else 4
        return (self.rows + self.classes) * self.features * width

    def arrays(self) -> tuple[Any, Any, Any]:
        """Return hidden, head and target, the same for all candidates."""
        rng = np.random.default_rng(0)
        hidden = rng.standard_normal((self.rows, self.features), np.float32)
        head = rng.standard_normal((self.classes, self.features), np.float32)
        head /= np.float32(self.features**0.5)
        if self.dtype == "bfloat16":
            hidden, head = (a.astype(ml_dtypes.bfloat16) for a in (hidden, head))
        return hidden, head, rng.integers(0, self.classes, self.rows)


class Ready(NamedTuple):
    """A call that returns the value and the gradients, or the results of the floor.

    Parameters
    ----------
    call
        A function without arguments.
    temporary
        Bytes of temporary memory, if the compiler reports them.
    """

    call: Callable[[], Any]
    temporary: int | None = None


Candidate = Callable[[Problem], Ready | None]


def numpy_candidates() -> dict[str, Candidate]:
    """NumPy with textbook formulas, since it has no loss. It has no bfloat16 products either."""
    import xentx

    arrays = functools.cache(Problem.arrays)

    def candidate(function: Callable[..., Any]) -> Candidate:
        def make(problem: Problem) -> Ready | None:
            if problem.dtype == "bfloat16":
                return None
            return Ready(functools.partial(function, *arrays(problem)))

        return make

    def textbook(hidden: Any, head: Any, target: Any) -> Any:
        slope = hidden @ head.T
        slope -= slope.max(1, keepdims=True)
        row = np.arange(len(target))
        picked = slope[row, target]
        np.exp(slope, out=slope)
        total = slope.sum(1, keepdims=True)
        value = (np.log(total[:, 0]) - picked).mean()
        slope /= total
        slope[row, target] -= 1
        slope /= len(target)
        return value, slope @ head, slope.T @ hidden

    def floor(problem: Problem) -> Ready | None:
        if problem.dtype == "bfloat16":
            return None
        hidden, head, _ = arrays(problem)
        logits = np.empty((BLOCK, problem.classes), np.float32)
        by_hidden, by_head = np.empty_like(hidden), np.empty_like(head)

        def call() -> None:
            for start in range(0, problem.rows, BLOCK):
                rows = hidden[start : start + BLOCK]
                np.matmul(rows, head.T, out=logits)
                np.matmul(logits, head, out=by_hidden[start : start + BLOCK])
                np.matmul(logits.T, rows, out=by_head)

        return Ready(call)

    return {
        "xentx": candidate(xentx.value_and_grad(xentx.linear_cross_entropy)),
        "textbook NumPy": candidate(textbook),
        FLOOR: floor,
    }


def torch_candidates() -> dict[str, Candidate]:  # noqa: C901 -- a list of functions
    """PyTorch, eager and compiled, and its own loss in chunks.

    On processors without bfloat16 products, PyTorch's are a hundred times slower than those of
    float32. There its own losses and the floor get float32 arrays.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    import xentx

    @functools.cache
    def tensors(problem: Problem) -> tuple[Any, ...]:
        hidden, head, target = problem.arrays()
        if problem.dtype == "bfloat16":
            factors = (
                torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) for a in (hidden, head)
            )
        else:
            factors = map(torch.from_numpy, (hidden, head))
        return *factors, torch.from_numpy(target)

    narrow = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001

    def multiplied(factor: Any) -> Any:
        return factor if narrow else factor.float()

    def naive(hidden: Any, head: Any, target: Any) -> Any:
        return F.cross_entropy(multiplied(hidden) @ multiplied(head).T, target)

    def chunked(hidden: Any, head: Any, target: Any) -> Any:
        options = torch.nn.LinearCrossEntropyOptions()
        factors = multiplied(hidden), multiplied(head)
        return F.linear_cross_entropy(*factors, target, options=options)

    def candidate(loss: Callable[..., Any], *, compiled: bool) -> Candidate:
        def make(problem: Problem) -> Ready:
            hidden, head, target = tensors(problem)
            hidden, head = (a.detach().requires_grad_() for a in (hidden, head))
            function = torch.compile(loss, dynamic=False) if compiled else loss

            def call() -> Any:
                value = function(hidden, head, target)
                value.backward()
                gradients = hidden.grad, head.grad
                hidden.grad = head.grad = None
                return value.detach(), *gradients

            return Ready(call)

        return make

    def floor(problem: Problem) -> Ready:
        hidden, head, _ = tensors(problem)
        hidden, head = multiplied(hidden), multiplied(head)
        logits = hidden.new_empty((BLOCK, problem.classes))
        by_hidden, by_head = torch.empty_like(hidden), torch.zeros_like(head)

        def call() -> None:
            for start in range(0, problem.rows, BLOCK):
                rows = hidden[start : start + BLOCK]
                torch.matmul(rows, head.T, out=logits)
                torch.matmul(logits, head, out=by_hidden[start : start + BLOCK])
                by_head.addmm_(logits.T, rows)

        return Ready(call)

    return {
        "xentx": candidate(xentx.linear_cross_entropy, compiled=False),
        "xentx, torch.compile": candidate(xentx.linear_cross_entropy, compiled=True),
        "F.cross_entropy": candidate(naive, compiled=False),
        "F.cross_entropy, torch.compile": candidate(naive, compiled=True),
        "F.linear_cross_entropy, chunked": candidate(chunked, compiled=False),
        FLOOR: floor,
    }


def jax_candidates() -> dict[str, Candidate]:  # noqa: C901
    """JAX under jit: Optax's loss of all logits, and of one chunk at a time in a scan."""
    import jax
    import jax.numpy as jnp
    import optax

    import xentx

    chunk = 256

    @functools.cache
    def arrays(problem: Problem) -> tuple[Any, ...]:
        # Wait for the copy, which would otherwise change the peak memory.
        return jax.block_until_ready(tuple(map(jnp.asarray, problem.arrays())))

    def losses(hidden: Any, head: Any, target: Any) -> Any:
        logits = (hidden @ head.T).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target)

    def naive(hidden: Any, head: Any, target: Any) -> Any:
        return losses(hidden, head, target).mean()

    def scanned(hidden: Any, head: Any, target: Any) -> Any:
        @jax.checkpoint
        def step(total: Any, part: Any) -> Any:
            rows, targets = part
            return total + losses(rows, head, targets).sum(), None

        parts = hidden.reshape(-1, chunk, hidden.shape[1]), target.reshape(-1, chunk)
        total, _ = jax.lax.scan(step, jnp.float32(0), parts)
        return total / len(target)

    def products(hidden: Any, head: Any, target: Any) -> Any:
        def step(by_head: Any, rows: Any) -> Any:
            logits = rows @ head.T
            return by_head + logits.T @ rows, logits @ head

        return jax.lax.scan(step, jnp.zeros_like(head), hidden.reshape(-1, BLOCK, hidden.shape[1]))

    def candidate(function: Callable[..., Any]) -> Candidate:
        def make(problem: Problem) -> Ready:
            given = arrays(problem)
            step = jax.jit(function).lower(*given).compile()
            temporary = step.memory_analysis().temp_size_in_bytes
            return Ready(lambda: jax.block_until_ready(step(*given)), temporary)

        return make

    def differentiated(loss: Callable[..., Any]) -> Callable[..., Any]:
        def function(*given: Any) -> Any:
            value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*given)
            return value, *gradients

        return function

    return {
        "xentx": candidate(differentiated(xentx.linear_cross_entropy)),
        "optax": candidate(differentiated(naive)),
        "optax, scan with checkpoint": candidate(differentiated(scanned)),
        FLOOR: candidate(products),
    }


def tensorflow_candidates() -> dict[str, Candidate]:
    """TensorFlow, eager and in tf.function."""
    import tensorflow as tf

    import xentx

    @functools.cache
    def tensors(problem: Problem) -> tuple[Any, ...]:
        found = tuple(map(tf.constant, problem.arrays()))
        tf.constant(0) + 0  # TensorFlow frees NumPy's arrays in its next operation
        return found

    def naive(hidden: Any, head: Any, target: Any) -> Any:
        logits = tf.cast(tf.matmul(hidden, head, transpose_b=True), tf.float32)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits))

    def candidate(loss: Callable[..., Any], *, traced: bool) -> Candidate:
        def step(hidden: Any, head: Any, target: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch((hidden, head))
                value = loss(hidden, head, target)
            return value, *tape.gradient(value, (hidden, head))

        def make(problem: Problem) -> Ready:
            given = tensors(problem)
            function = tf.function(step).get_concrete_function(*given) if traced else step
            return Ready(lambda: function(*given))

        return make

    def floor(problem: Problem) -> Ready:
        hidden, head, _ = tensors(problem)
        blocks = tf.split(hidden, problem.rows // BLOCK)
        starts = range(0, problem.classes, CLASSES)
        heads = [head[start : start + CLASSES] for start in starts]

        def call() -> None:
            for rows in blocks:
                for part in heads:
                    logits = tf.matmul(rows, part, transpose_b=True)
                    tf.matmul(logits, part)
                    tf.matmul(logits, rows, transpose_a=True)

        return Ready(call)

    return {
        "xentx": candidate(xentx.linear_cross_entropy, traced=False),
        "xentx, tf.function": candidate(xentx.linear_cross_entropy, traced=True),
        "tf.nn.sparse, eager": candidate(naive, traced=False),
        "tf.nn.sparse, tf.function": candidate(naive, traced=True),
        FLOOR: floor,
    }


CANDIDATES: dict[str, Callable[[], dict[str, Candidate]]] = {
    "numpy": numpy_candidates,
    "torch": torch_candidates,
    "jax": jax_candidates,
    "tensorflow": tensorflow_candidates,
}
