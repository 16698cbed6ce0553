"""Time every function and option of xentx, and each framework's own way to compute it.

    python benchmarks/functions.py [--framework torch] [--engine portable] [--shape 512x32000]
        [--out benchmarks/functions.json]

`benchmarks/speed.py` times the loss without options in more detail. For each case of `CASES`, this
program times xentx and the framework's own functions in turns, in one process for each framework
and engine. A ratio is the time of the framework divided by that of xentx: above 1, xentx is faster.
Both are called in the same mode: eager, compiled, or compiled by XLA. If a framework has several
ways, the fastest one is used. The median of the rounds is printed.

`docs/generate_performance.py` makes tables of the stored results.
"""

import argparse
import json
import statistics
import sys
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import xentx
from _measure import apart, machine

SHAPES = ("32x10", "256x1000", "512x32000", "2048x50257")
DTYPES = ("float32", "bfloat16")
ENGINES = ("kernel", "portable")
OPTIONS: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "logit_softcap": {"logit_softcap": 30.0},
    "z_loss": {"z_loss": 1e-4},
}
CASES = (
    *("cross_entropy", *OPTIONS, "weight", "probabilities"),
    *("nll_loss", "log_softmax", "per_row", "kl_divergence"),
)
ENTROPY = 0.1  # `per_row` computes the loss minus this multiple of the entropy
ROUNDS = 3
BLOCK_SECONDS = 0.12

Call = Callable[[], Any]
Loss = Callable[[Any, "Arrays"], Any]


class Arrays(NamedTuple):
    """The arguments of all cases."""

    logits: Any
    target: Any  # class indices
    probabilities: Any  # a row of probabilities for each row of logits
    weight: Any  # one for each class
    cotangent: Any  # for log_softmax
    other: Any  # the other logits of kl_divergence


def arrays(shape: tuple[int, int], dtype: str) -> Arrays:
    """Return the arguments as NumPy arrays."""
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    probabilities = rng.random(shape, np.float32)
    probabilities /= probabilities.sum(-1, keepdims=True)
    weight = rng.random(shape[1], np.float32) + 0.5
    logits, cotangent, other, probabilities, weight = (
        array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for array in (*drawn, probabilities, weight)
    )
    target = rng.integers(0, shape[1], shape[0])
    return Arrays(logits, target, probabilities, weight, cotangent, other)


def problem(case: str, data: Arrays) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function of xentx and its arguments after the logits."""
    if case == "log_softmax":
        return xentx.log_softmax, (), {}
    if case == "kl_divergence":
        return xentx.kl_divergence, (data.other,), {}
    if case in {"nll_loss", "per_row"}:
        return getattr(xentx, case), (data.target,), {}
    target = data.probabilities if case == "probabilities" else data.target
    options = {"weight": data.weight} if case == "weight" else OPTIONS.get(case, {})
    return xentx.cross_entropy, (target,), options


def ours(case: str, mean: Callable[[Any], Any]) -> Loss:
    """Return the case as a function of the logits."""

    def loss(logits: Any, data: Arrays) -> Any:
        function, arguments, options = problem(case, data)
        found = function(logits, *arguments, **options)
        return mean(found.loss - ENTROPY * found.entropy) if case == "per_row" else found

    return loss


class Numpy:
    """NumPy with textbook formulas, since it has no losses. Gradients are written by hand."""

    modes = ("eager",)

    def arrays(self, data: Arrays) -> Arrays:
        """Return the arguments as arrays of this framework."""
        return data

    def ours(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, Call]:
        """Return a call of xentx for each mode."""
        function, arguments, options = problem(case, data)
        if not gradient:
            loss = ours(case, np.mean)
            return {"eager": lambda: loss(data.logits, data)}
        if case == "per_row":  # it has no gradient in NumPy
            return {}
        if case == "log_softmax":
            options = {"cotangent": data.cotangent}
        both = xentx.value_and_grad(function)
        return {"eager": lambda: both(data.logits, *arguments, **options)}

    def peers(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, dict[str, Call]]:
        """Return the framework's own ways, for each mode."""
        return {"eager": {"textbook": lambda: self._textbook(case, data, gradient=gradient)}}

    def _textbook(  # noqa: C901, PLR0911, PLR0912 -- one formula for each case
        self, case: str, data: Arrays, *, gradient: bool
    ) -> Any:
        x, rows, target = data.logits, len(data.logits), data.target[:, None]
        if case == "nll_loss":
            loss = -np.take_along_axis(x, target, -1).mean()
            if not gradient:
                return loss
            g = np.zeros_like(x)
            np.put_along_axis(g, target, -1 / rows, -1)
            return loss, g
        if case == "logit_softcap":
            x = 30 * np.tanh(x / 30)
        shifted = x - x.max(-1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(-1, keepdims=True)
        log_p = shifted - np.log(total)
        if case == "log_softmax":
            g, sums = data.cotangent, data.cotangent.sum(-1, keepdims=True)
            return (log_p, g - np.exp(log_p) * sums) if gradient else log_p
        if case == "kl_divergence":
            other = data.other - data.other.max(-1, keepdims=True)
            other = other - np.log(np.exp(other).sum(-1, keepdims=True))
            q = np.exp(other)
            loss = (q * (other - log_p)).sum() / rows
            return (loss, (e / total - q) / rows) if gradient else loss
        if case == "probabilities":
            q = data.probabilities
            loss = -(q * log_p).sum() / rows
            if not gradient:
                return loss
            return loss, (e / total * q.sum(-1, keepdims=True) - q) / rows
        picked = np.take_along_axis(log_p, target, -1)
        smooth = 0.1 if case == "label_smoothing" else 0.0
        loss = -picked
        if smooth:
            loss = (1 - smooth) * loss - smooth * log_p.mean(-1, keepdims=True)
        if case == "per_row":
            return (loss + ENTROPY * (np.exp(log_p) * log_p).sum(-1, keepdims=True)).mean()
        scale = np.full((rows, 1), 1 / rows, x.dtype)
        if case == "weight":
            scale = data.weight[target] / data.weight[target].sum()
        lse = x.max(-1, keepdims=True) + np.log(total)
        if case == "z_loss":
            loss = loss + 1e-4 * lse**2
        loss = (loss * scale).sum()
        if not gradient:
            return loss
        g = e / total
        if case == "z_loss":
            g *= 1 + 2e-4 * lse
        if smooth:
            g -= smooth / x.shape[-1]
        np.put_along_axis(g, target, np.take_along_axis(g, target, -1) - (1 - smooth), -1)
        g *= scale
        if case == "logit_softcap":
            g *= 1 - (x / 30) ** 2
        return loss, g


class Torch:
    """PyTorch, eager and compiled."""

    modes = ("eager", "torch.compile")

    def __init__(self) -> None:
        import torch
        import torch.nn.functional

        self.torch, self.functional = torch, torch.nn.functional
        # By default, a function is no longer compiled after eight shapes and dtypes.
        torch._dynamo.config.recompile_limit = 1000  # noqa: SLF001

    def arrays(self, data: Arrays) -> Arrays:
        """Return the arguments as arrays of this framework."""
        dtype = getattr(self.torch, str(data.logits.dtype))
        return Arrays(
            *(
                self.torch.from_numpy(array)
                if array.dtype == np.int64
                else self.torch.from_numpy(array.astype(np.float32)).to(dtype)
                for array in data
            )
        )

    def ours(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, Call]:
        """Return a call of xentx for each mode."""
        return self._calls(case, ours(case, lambda x: x.mean()), data, gradient=gradient)

    def peers(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, dict[str, Call]]:
        """Return the framework's own ways, for each mode."""
        calls = self._calls(case, self._losses()[case], data, gradient=gradient)
        return {mode: {"torch.nn.functional": call} for mode, call in calls.items()}

    def _calls(self, case: str, loss: Loss, data: Arrays, *, gradient: bool) -> dict[str, Call]:
        torch = self.torch
        found = {}
        # Compiling takes seconds for each. For small problems, the call takes most of the time.
        compiles = data.logits.dtype == torch.float32 and data.logits.shape[0] in {256, 512}
        for mode in self.modes if compiles else self.modes[:1]:
            function = loss if mode == "eager" else torch.compile(loss, dynamic=False)
            if not gradient:
                found[mode] = lambda function=function: function(data.logits, data)
                continue
            x = data.logits.clone().requires_grad_()
            seed = data.cotangent if case == "log_softmax" else None

            def step(function: Loss = function, x: Any = x, seed: Any = seed) -> Any:
                x.grad = None
                value = function(x, data)
                value.backward(seed)
                return value

            found[mode] = step
        return found

    def _losses(self) -> dict[str, Loss]:
        functional = self.functional
        loss = functional.cross_entropy

        def per_row(x: Any, d: Arrays) -> Any:
            log_p = functional.log_softmax(x, -1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            return (
                functional.nll_loss(log_p, d.target, reduction="none") - ENTROPY * entropy
            ).mean()

        def kl_divergence(x: Any, d: Arrays) -> Any:
            first, second = (functional.log_softmax(logits, -1) for logits in (x, d.other))
            return functional.kl_div(first, second, reduction="batchmean", log_target=True)

        return {
            "cross_entropy": lambda x, d: loss(x, d.target),
            "label_smoothing": lambda x, d: loss(x, d.target, label_smoothing=0.1),
            "weight": lambda x, d: loss(x, d.target, weight=d.weight),
            "probabilities": lambda x, d: loss(x, d.probabilities),
            "logit_softcap": lambda x, d: loss(30 * (x / 30).tanh(), d.target),
            "z_loss": lambda x, d: loss(x, d.target) + 1e-4 * x.logsumexp(-1).square().mean(),
            "nll_loss": lambda x, d: functional.nll_loss(x, d.target),
            "log_softmax": lambda x, _: functional.log_softmax(x, -1),
            "per_row": per_row,
            "kl_divergence": kl_divergence,
        }


class Jax:
    """JAX under jit."""

    modes = ("jit",)

    def __init__(self) -> None:
        import jax
        import optax

        self.jax, self.optax = jax, optax

    def arrays(self, data: Arrays) -> Arrays:
        """Return the arguments as arrays of this framework."""
        return self.jax.block_until_ready(Arrays(*map(self.jax.numpy.asarray, data)))

    def ours(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, Call]:
        """Return a call of xentx for each mode."""
        loss = ours(case, lambda x: x.mean())
        return {"jit": self._call(case, loss, data, gradient=gradient)}

    def peers(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, dict[str, Call]]:
        """Return the framework's own ways, for each mode."""
        ways = self._losses()[case].items()
        calls = {name: self._call(case, loss, data, gradient=gradient) for name, loss in ways}
        return {"jit": calls}

    def _call(self, case: str, loss: Loss, data: Arrays, *, gradient: bool) -> Call:
        jax = self.jax

        def both(x: Any, d: Arrays) -> Any:
            value, pullback = jax.vjp(lambda x: loss(x, d), x)
            return value, pullback(d.cotangent if case == "log_softmax" else value * 0 + 1)

        step = jax.jit(both if gradient else loss)
        return lambda: jax.block_until_ready(step(data.logits, data))

    def _losses(self) -> dict[str, dict[str, Loss]]:
        jax, optax = self.jax, self.optax
        np_ = jax.numpy

        def picked(log_p: Any, d: Arrays) -> Any:
            return -np_.take_along_axis(log_p, d.target[:, None], -1)[:, 0]

        def rows(x: Any, d: Arrays) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(x, d.target)

        def z_loss(x: Any, d: Arrays) -> Any:
            return (rows(x, d) + 1e-4 * jax.nn.logsumexp(x, -1) ** 2).mean()

        def smooth(x: Any, d: Arrays) -> Any:
            log_p = jax.nn.log_softmax(x)
            return (0.9 * picked(log_p, d) - 0.1 * log_p.mean(-1)).mean()

        def smooth_labels(x: Any, d: Arrays) -> Any:
            labels = optax.smooth_labels(jax.nn.one_hot(d.target, x.shape[-1], dtype=x.dtype), 0.1)
            return optax.softmax_cross_entropy(x, labels).mean()

        def weight(x: Any, d: Arrays) -> Any:
            w = d.weight[d.target]
            return (rows(x, d) * w).sum() / w.sum()

        def per_row(x: Any, d: Arrays) -> Any:
            log_p = jax.nn.log_softmax(x)
            return (picked(log_p, d) + ENTROPY * (np_.exp(log_p) * log_p).sum(-1)).mean()

        def kl_divergence(x: Any, d: Arrays) -> Any:
            first, second = jax.nn.log_softmax(x), jax.nn.log_softmax(d.other)
            return optax.losses.kl_divergence_with_log_targets(first, second).mean()

        return {
            "cross_entropy": {
                "optax": lambda x, d: rows(x, d).mean(),
                "jax.nn.log_softmax": lambda x, d: picked(jax.nn.log_softmax(x), d).mean(),
            },
            "label_smoothing": {"optax": smooth_labels, "jax.nn.log_softmax": smooth},
            "weight": {"optax": weight},
            "probabilities": {
                "optax": lambda x, d: optax.softmax_cross_entropy(x, d.probabilities).mean()
            },
            "logit_softcap": {"optax": lambda x, d: rows(30 * np_.tanh(x / 30), d).mean()},
            "z_loss": {"optax": z_loss},
            "nll_loss": {"take_along_axis": lambda x, d: picked(x, d).mean()},
            "log_softmax": {"jax.nn.log_softmax": lambda x, _: jax.nn.log_softmax(x)},
            "per_row": {"jax.nn.log_softmax": per_row},
            "kl_divergence": {"optax": kl_divergence},
        }


class Tensorflow:
    """TensorFlow, eager, in tf.function and under XLA."""

    modes = ("eager", "tf.function", "XLA")

    def __init__(self) -> None:
        import tensorflow as tf

        self.tf = tf

    def arrays(self, data: Arrays) -> Arrays:
        """Return the arguments as arrays of this framework."""
        return Arrays(*map(self.tf.constant, data))

    def ours(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, Call]:
        """Return a call of xentx for each mode."""
        return self._calls(case, ours(case, self.tf.reduce_mean), data, gradient=gradient)

    def peers(self, case: str, data: Arrays, *, gradient: bool) -> dict[str, dict[str, Call]]:
        """Return the framework's own ways, for each mode."""
        calls = self._calls(case, self._losses()[case], data, gradient=gradient)
        return {mode: {"tf.nn": call} for mode, call in calls.items()}

    def _calls(self, case: str, loss: Loss, data: Arrays, *, gradient: bool) -> dict[str, Call]:
        tf = self.tf
        seed = data.cotangent if case == "log_softmax" else None

        def both(x: Any, d: Arrays) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(x, d)
            return value, tape.gradient(value, x, output_gradients=seed)

        step = both if gradient else loss
        steps = (step, tf.function(step), tf.function(step, jit_compile=True))
        return {
            mode: lambda step=step: step(data.logits, data)
            for mode, step in zip(self.modes, steps, strict=True)
        }

    def _losses(self) -> dict[str, Loss]:
        tf = self.tf
        mean = tf.reduce_mean

        def rows(x: Any, d: Arrays) -> Any:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(d.target, x)

        def soft(x: Any, q: Any) -> Any:
            return mean(tf.nn.softmax_cross_entropy_with_logits(q, x))

        def smooth(x: Any, d: Arrays) -> Any:
            classes = x.shape[-1]
            return soft(
                x, tf.one_hot(d.target, classes, 0.9 + 0.1 / classes, 0.1 / classes, dtype=x.dtype)
            )

        def weight(x: Any, d: Arrays) -> Any:
            w = tf.gather(d.weight, d.target)
            return tf.reduce_sum(rows(x, d) * w) / tf.reduce_sum(w)

        def z_loss(x: Any, d: Arrays) -> Any:
            return mean(rows(x, d) + 1e-4 * tf.reduce_logsumexp(x, -1) ** 2)

        def picked(log_p: Any, d: Arrays) -> Any:
            return -tf.gather(log_p, d.target, batch_dims=1)

        def per_row(x: Any, d: Arrays) -> Any:
            log_p = tf.nn.log_softmax(x)
            return mean(picked(log_p, d) + ENTROPY * tf.reduce_sum(tf.exp(log_p) * log_p, -1))

        def kl_divergence(x: Any, d: Arrays) -> Any:
            first, second = tf.nn.log_softmax(x), tf.nn.log_softmax(d.other)
            return mean(tf.reduce_sum(tf.exp(second) * (second - first), -1))

        return {
            "cross_entropy": lambda x, d: mean(rows(x, d)),
            "label_smoothing": smooth,
            "weight": weight,
            "probabilities": lambda x, d: soft(x, d.probabilities),
            "logit_softcap": lambda x, d: mean(rows(30 * tf.tanh(x / 30), d)),
            "z_loss": z_loss,
            "nll_loss": lambda x, d: mean(picked(x, d)),
            "log_softmax": lambda x, _: tf.nn.log_softmax(x),
            "per_row": per_row,
            "kl_divergence": kl_divergence,
        }


FRAMEWORKS = {"numpy": Numpy, "torch": Torch, "jax": Jax, "tensorflow": Tensorflow}


def rounds(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Time the calls in turns, in alternating order. Return the seconds of each round."""
    numbers = {}
    for name, call in calls.items():
        timeit.timeit(call, number=2)  # compiles, and touches memory
        once = timeit.timeit(call, number=1)
        numbers[name] = min(max(1, int(BLOCK_SECONDS / max(once, 1e-7))), 20_000)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(ROUNDS):
        for name in list(calls) if i % 2 == 0 else list(reversed(calls)):
            seconds = timeit.timeit(calls[name], number=numbers[name])
            found[name].append(seconds / numbers[name])
    return found


def agree(calls: dict[str, Call]) -> None:
    """Check that all calls compute the same value."""
    values = []
    for call in calls.values():
        found = call()
        value = found[0] if isinstance(found, tuple | list) else found
        value = value.detach() if hasattr(value, "detach") else value
        values.append(np.asarray(value, np.float64))
    for value in values:
        np.testing.assert_allclose(value, values[0], rtol=1e-3, atol=1e-3)


def measure(name: str, shapes: list[str], cases: list[str]) -> Iterator[dict[str, Any]]:
    """Time all cases of a framework."""
    framework = FRAMEWORKS[name]()
    for shape in shapes:
        size = tuple(map(int, shape.split("x")))
        for dtype in DTYPES:
            data = framework.arrays(arrays(size, dtype))
            for case in cases:
                for gradient in (False, True):
                    mine = framework.ours(case, data, gradient=gradient)
                    peers = framework.peers(case, data, gradient=gradient)
                    for mode, call in mine.items():
                        calls = {"xentx": call, **peers[mode]}
                        if dtype == "float32":
                            agree(calls)
                        yield {
                            "case": case,
                            "shape": shape,
                            "dtype": dtype,
                            "gradient": gradient,
                            "mode": mode,
                            "seconds": rounds(calls),
                        }
            print(name, shape, dtype, file=sys.stderr)  # noqa: T201 -- progress


def ratio(seconds: dict[str, list[float]]) -> float:
    """Return the time of the fastest peer divided by that of xentx: the median of the rounds."""
    peer = min((name for name in seconds if name != "xentx"), key=lambda n: min(seconds[n]))
    pairs = zip(seconds[peer], seconds["xentx"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def tables(results: list[dict[str, Any]], dtype: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield a table for each mode: a row for each case, a column for each shape and pass."""
    for mode in dict.fromkeys(result["mode"] for result in results):
        chosen = [r for r in results if r["mode"] == mode and r["dtype"] == dtype]
        found = {
            (r["case"], r["shape"], r["gradient"]): f"{ratio(r['seconds']):.2g}" for r in chosen
        }
        if not found:
            continue
        shapes = list(dict.fromkeys(r["shape"] for r in chosen))
        columns = [(shape, gradient) for shape in shapes for gradient in (False, True)]
        heads = [f"{shape} {'f + b' if gradient else 'f'}" for shape, gradient in columns]
        rows = [
            [case, *(found.get((case, *column), "") for column in columns)]
            for case in dict.fromkeys(r["case"] for r in chosen)
        ]
        yield mode, [["", *heads], *rows]


def main() -> None:
    """Run a process for each framework and engine, print tables, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(FRAMEWORKS))
    parser.add_argument("--engine", action="append", choices=ENGINES)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes, cases = options.shape or list(SHAPES), options.case or list(CASES)
    if options.worker:
        print(json.dumps(list(measure(options.worker, shapes, cases))))  # noqa: T201
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen = [f"--shape={shape}" for shape in shapes] + [f"--case={case}" for case in cases]
    report: dict[str, Any] = {"machine": machine(), "engines": {}}
    for engine in options.engine or ENGINES:
        found = report["engines"][engine] = {}
        for framework in options.framework or FRAMEWORKS:
            env = {"XENTX_ENGINE": engine}
            found[framework] = apart(__file__, "--worker", framework, *chosen, env=env)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")
            for dtype in DTYPES:
                for mode, (heads, *rows) in tables(found[framework], dtype):
                    title = f"{framework}, {mode}, {engine}, {dtype}"
                    drawn = Table(*heads, title=title, box=box.SIMPLE)
                    for row in rows:
                        drawn.add_row(*row)
                    console.print(drawn)


if __name__ == "__main__":
    main()
