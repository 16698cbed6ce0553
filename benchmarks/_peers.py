"""Candidates of speed.py: for each framework, xentx and the other ways to compute the loss.

A candidate takes a workload and returns a function, which computes the loss, or the loss and its
gradient. The results are ready when it returns. Each candidate is called as users of its framework
call it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Call = Callable[[], Any]
Candidate = Callable[["Workload"], Call]


@dataclass(frozen=True)
class Workload:
    """Shape and dtype of the logits, and whether the gradient is computed too."""

    shape: tuple[int, ...]
    axis: int
    dtype: str
    gradient: bool

    def __str__(self) -> str:
        passes = "forward + backward" if self.gradient else "forward"
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {passes}"

    @property
    def bytes_moved(self) -> int:
        """Bytes that must be moved: the logits are read, and the gradient is written."""
        size = int(np.prod(self.shape)) * (2 if self.dtype == "bfloat16" else 4)
        return 2 * size if self.gradient else size

    def arrays(self) -> tuple[Any, Any]:
        """Return logits and target, the same for all candidates."""
        rng = np.random.default_rng(0)
        rows = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        logits = rng.standard_normal(self.shape, np.float32)
        if self.dtype == "bfloat16":
            logits = logits.astype(ml_dtypes.bfloat16)
        return logits, rng.integers(0, self.shape[self.axis], rows)


def numpy_candidates() -> dict[str, Candidate]:  # noqa: C901 -- a list of functions
    """NumPy with textbook formulas, since it has no loss, and with SciPy's log_softmax."""
    import xentx
    import xentx_numpy

    def ours(workload: Workload) -> Call:
        logits, target = workload.arrays()
        function = xentx.cross_entropy
        if workload.gradient:
            function = xentx.value_and_grad(function)
        return functools.partial(function, logits, target, axis=workload.axis)

    def fresh(workload: Workload) -> Call:
        call = ours(workload)
        if not workload.gradient or workload.bytes_moved < 1 << 23:
            return call

        def forgetting() -> Any:
            xentx_numpy.reuse_memory(0)  # free the memory that the candidate below keeps
            return call()

        return forgetting

    def reusing(workload: Workload) -> Call | None:
        if not workload.gradient or workload.bytes_moved < 1 << 23:
            return None
        call = ours(workload)

        def keeping() -> Any:
            xentx_numpy.reuse_memory(1 << 31)
            result = call()
            return result[0]

        return keeping

    def textbook(workload: Workload) -> Call:
        logits, target = workload.arrays()
        axis = workload.axis
        index = np.expand_dims(target, axis)

        def call() -> Any:
            shifted = logits - logits.max(axis, keepdims=True)
            e = np.exp(shifted)
            total = e.sum(axis, keepdims=True)
            loss = (np.log(total) - np.take_along_axis(shifted, index, axis)).mean()
            if not workload.gradient:
                return loss
            e /= total
            picked = np.take_along_axis(e, index, axis) - 1
            np.put_along_axis(e, index, picked, axis)
            e /= target.size
            return loss, e

        return call

    def scipy(workload: Workload) -> Call | None:
        from scipy.special import log_softmax

        if workload.gradient or workload.dtype == "bfloat16":
            return None
        logits, target = workload.arrays()
        index = np.expand_dims(target, workload.axis)

        def call() -> Any:
            log_probs = log_softmax(logits, axis=workload.axis)
            return -np.take_along_axis(log_probs, index, workload.axis).mean()

        return call

    return {
        "xentx": fresh,
        "xentx, reused memory": reusing,
        "textbook NumPy": textbook,
        "scipy log_softmax": scipy,
    }


def torch_candidates() -> dict[str, Candidate]:
    """PyTorch, eager and compiled."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    import xentx

    # By default, a function is no longer compiled after eight shapes and dtypes.
    torch.compiler.reset()

    def candidate(loss: Callable[..., Any], *, compiled: bool) -> Candidate:
        def make(workload: Workload) -> Call:
            logits, target = workload.arrays()
            x = torch.from_numpy(logits.astype(np.float32)).to(getattr(torch, workload.dtype))
            t = torch.from_numpy(target)
            function = torch.compile(loss, dynamic=False) if compiled else loss
            kwargs = {} if loss is F.cross_entropy else {"axis": workload.axis}
            if not workload.gradient:
                return functools.partial(function, x, t, **kwargs)
            x.requires_grad_()

            def call() -> Any:
                x.grad = None
                value = function(x, t, **kwargs)
                value.backward()
                return value

            return call

        return make

    def without_autograd(workload: Workload) -> Call | None:
        if not workload.gradient:
            return None
        logits, target = workload.arrays()
        x = torch.from_numpy(logits.astype(np.float32)).to(getattr(torch, workload.dtype))
        function = xentx.value_and_grad(xentx.cross_entropy)
        return functools.partial(function, x, torch.from_numpy(target), axis=workload.axis)

    return {
        "xentx": candidate(xentx.cross_entropy, compiled=False),
        "xentx.value_and_grad": without_autograd,
        "xentx, torch.compile": candidate(xentx.cross_entropy, compiled=True),
        "F.cross_entropy": candidate(F.cross_entropy, compiled=False),
        "F.cross_entropy, torch.compile": candidate(F.cross_entropy, compiled=True),
    }


def jax_candidates() -> dict[str, Candidate]:
    """JAX under jit."""
    import jax
    import jax.numpy as jnp
    import optax

    import xentx

    def optax_loss(x: Any, t: Any, axis: int) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(x, t, axis=axis).mean()

    def log_softmax_loss(x: Any, t: Any, axis: int) -> Any:
        log_probs = jax.nn.log_softmax(x, axis)
        return -jnp.take_along_axis(log_probs, jnp.expand_dims(t, axis), axis).mean()

    def candidate(loss: Callable[..., Any]) -> Candidate:
        def make(workload: Workload) -> Call:
            # Wait for the copy, which would otherwise change the peak memory.
            x, t = jax.block_until_ready(list(map(jnp.asarray, workload.arrays())))
            function = functools.partial(loss, axis=workload.axis)
            step = jax.jit(jax.value_and_grad(function) if workload.gradient else function)
            return lambda: jax.block_until_ready(step(x, t))

        return make

    return {
        "xentx": candidate(lambda x, t, axis: xentx.cross_entropy(x, t, axis=axis)),
        "optax": candidate(optax_loss),
        "jax.nn.log_softmax": candidate(log_softmax_loss),
    }


def tensorflow_candidates() -> dict[str, Candidate]:  # noqa: C901
    """TensorFlow, eager, in tf.function and under XLA, and Keras."""
    import keras
    import tensorflow as tf

    import xentx

    def sparse(x: Any, t: Any, axis: int) -> Any:
        if axis != x.shape.rank - 1:  # it supports only the last axis
            order = [*(d for d in range(x.shape.rank) if d != axis), axis]
            x = tf.transpose(x, order)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(t, x))

    scce = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def keras_loss(x: Any, t: Any, axis: int) -> Any:
        if axis != x.shape.rank - 1:
            order = [*(d for d in range(x.shape.rank) if d != axis), axis]
            x = tf.transpose(x, order)
        return scce(t, x)

    def candidate(loss: Callable[..., Any], how: str) -> Candidate:
        def make(workload: Workload) -> Call:
            logits, target = workload.arrays()
            x, t = tf.constant(logits), tf.constant(target)
            tf.constant(0) + 0  # TensorFlow frees NumPy's arrays in its next operation

            def step(x: Any, t: Any) -> Any:
                if not workload.gradient:
                    return loss(x, t, workload.axis)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    value = loss(x, t, workload.axis)
                return value, tape.gradient(value, x)

            if how != "eager":
                step = tf.function(step, jit_compile=how == "xla")
            return lambda: step(x, t)

        return make

    def ours(x: Any, t: Any, axis: int) -> Any:
        return xentx.cross_entropy(x, t, axis=axis)

    def without_tape(workload: Workload) -> Call | None:
        if not workload.gradient:
            return None
        function = xentx.value_and_grad(xentx.cross_entropy)
        return functools.partial(function, *map(tf.constant, workload.arrays()), axis=workload.axis)

    return {
        "xentx": candidate(ours, "eager"),
        "xentx.value_and_grad": without_tape,
        "xentx, tf.function": candidate(ours, "function"),
        "xentx, XLA": candidate(ours, "xla"),
        "tf.nn.sparse, eager": candidate(sparse, "eager"),
        "tf.nn.sparse, tf.function": candidate(sparse, "function"),
        "tf.nn.sparse, XLA": candidate(sparse, "xla"),
        "keras": candidate(keras_loss, "eager"),
    }


CANDIDATES: dict[str, Callable[[], dict[str, Candidate]]] = {
    "numpy": numpy_candidates,
    "torch": torch_candidates,
    "jax": jax_candidates,
    "tensorflow": tensorflow_candidates,
}
