"""Write docs/performance.md from the results that the benchmarks have stored.

for name in speed overhead linear; do python benchmarks/$name.py; done
python benchmarks/bytes_moved.py --json benchmarks/bytes_moved.json
python docs/generate_performance.py
"""  # noqa: INP001 -- a script

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]

from _markdown import table  # noqa: E402

import bytes_moved  # noqa: E402
from _linear_peers import FLOOR  # noqa: E402
from _speed_report import COLUMNS, figures, row  # noqa: E402
from linear import spread  # noqa: E402

PAGE = Path(__file__).with_name("performance.md")
COMMAND = "python docs/generate_performance.py"
SPEED = ROOT / "benchmarks" / "speed.json"
LINEAR = ROOT / "benchmarks" / "linear.json"
OVERHEAD = ROOT / "benchmarks" / "overhead.json"
BYTES = ROOT / "benchmarks" / "bytes_moved.json"
NAMES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}

HEAD = """\
# Performance

<!-- Written by `{command}`. Don't edit. -->

This page compares the time and memory of xentx with those of each framework's own losses. All
figures come from the benchmarks in `benchmarks/`. `{command}` writes the page from their stored
results.

Machine: {processor}, {processors} processors, {system}, Python {python}.
Versions: {versions}.
Engine of xentx: {engine}.

A **ratio** is the time of the other loss divided by the time of xentx. A ratio above 1 means that
xentx is faster. The two times of a ratio are measured one after the other, in one process. The
order alternates from round to round. The tables show the median of the rounds, and the smallest
and the largest ratio. On a shared machine, a ratio between 0.67 and 1.33 is not significant.
"""

SUMMARY_HEAD = """\
## Summary

Ratios by function. The other loss is the fastest of the framework's own losses. For NumPy, which
has none, it is the textbook formula. The shapes are rows x classes, and tokens x features x
classes for `linear_cross_entropy`.
"""

LOSSES_HEAD = """\
## Losses of logits

Measured by `python benchmarks/speed.py`. "Fastest peer" is the framework's own loss that took the
least time on the workload. "Limit" is the time that this machine's memory needs to read the
logits and, for the backward pass, to write the gradient. The memory bandwidth is measured in the
same run. "Time / limit" is not shown for workloads that fit into the caches.
"""

OVERHEAD_HEAD = """\
## Small problems

Measured by `python benchmarks/overhead.py`, for one call on logits of shape {shape} in float32.
Each table also has the time of a call that computes almost nothing. No loss in that framework can
take less.
"""

LINEAR_HEAD = """\
## The last layer and its loss

Measured by `python benchmarks/linear.py`, for the value and the gradients with respect to
`hidden` and `head`. A heading gives the numbers of tokens, features and classes. "/ xentx" and "/
floor" are the time divided by that of xentx and by that of the floor. The floor is three matrix
products of these sizes by the framework's own BLAS. Every method that computes the gradients
needs these products. "Peak memory" does not include the arguments and the gradients.

In bfloat16 xentx is slower than the frameworks' own losses, for three reasons:

- xentx computes its logits in float32. The frameworks round them to bfloat16. The floor does too,
  and a processor may have special units for these products. PyTorch and TensorFlow have no
  product of bfloat16 arrays with a float32 result on CPUs.
- xentx accumulates the gradient with respect to `head` in float32.
- This takes a fourth matrix product.

PyTorch's chunked loss accumulates the losses themselves in bfloat16. Its mean is wrong by some
percent.
"""

BYTES_HEAD = """\
## Bytes moved

Counted by `python benchmarks/bytes_moved.py`: the bytes that the portable core and its peers read
and write in memory, per logit. A cell shows "read + written". The bytes are counted in the
program that XLA compiles for {rows} rows of {classes} classes, with {versions}. Nothing is
executed: a machine without an H100 and without a TPU v5e can compile programs for them. The
counts are not times. On accelerators, where the memory bandwidth limits a loss, the time is
roughly proportional to them.

One pass over float32 logits reads 4 bytes per logit. A loss needs one pass for the maximum and
one for the sum. Its gradient needs a third pass, which also writes 4 bytes. Soft targets have as
many bytes as the logits.
"""

INDUCTOR_HEAD = """\
### torch.compile on CPUs, {dtype}

A cell shows two counts. The first is the number of arrays of the logits' size that the generated
code allocates, including the gradient. The second is the number of loops over the classes. One
loop is one pass.
"""

# For the summary: a function, a workload of `benchmarks/speed.py`, and xentx's name there. JAX's
# workloads are compiled.
SUMMARY = (
    ("`cross_entropy`", "256x1000 float32 forward", dict.fromkeys(NAMES, "xentx")),
    ("`cross_entropy`", "2048x50257 float32 forward", dict.fromkeys(NAMES, "xentx")),
    ("`cross_entropy`", "32x10 float32 forward + backward", dict.fromkeys(NAMES, "xentx")),
    ("`cross_entropy`", "256x1000 float32 forward + backward", dict.fromkeys(NAMES, "xentx")),
    ("`cross_entropy`", "2048x50257 float32 forward + backward", dict.fromkeys(NAMES, "xentx")),
    (
        "`cross_entropy` in `torch.compile`, `jax.jit`, `tf.function`",
        "2048x50257 float32 forward + backward",
        {"torch": "xentx, torch.compile", "jax": "xentx", "tensorflow": "xentx, tf.function"},
    ),
    (
        "`cross_entropy` in `tf.function(jit_compile=True)`",
        "2048x50257 float32 forward + backward",
        {"tensorflow": "xentx, XLA"},
    ),
)


def summary(speed: dict[str, Any], linear: dict[str, Any]) -> Iterator[str]:
    """Lay out one table of ratios by function, which the README has too."""
    dense = {(f.framework, f.workload, f.ours): f"{f.ratio:.2g}" for f in figures(speed)}
    rows = [
        (name, workload, *(dense.get((key, workload, ours.get(key)), "") for key in NAMES))
        for name, workload, ours in SUMMARY
    ]
    factors = {
        (framework, result["problem"]): fastest(result["seconds"])
        for framework, results in linear["frameworks"].items()
        for result in results
    }
    rows += [
        (
            "`linear_cross_entropy`",
            f"{problem.replace(' x ', 'x')} forward + backward",
            *(factors.get((key, problem), "") for key in NAMES),
        )
        for problem in dict.fromkeys(problem for _, problem in factors)
    ]
    yield from table(("function", "workload", *NAMES.values()), iter(rows))


def fastest(seconds: dict[str, list[float]]) -> str:
    """Ratio of the fastest loss of the framework's own to xentx, the median of the rounds."""
    others = (name for name in seconds if name != FLOOR and not name.startswith("xentx"))
    peers = [seconds[name] for name in others]
    peer = min(peers, key=statistics.median)
    ratios = [theirs / ours for theirs, ours in zip(peer, seconds["xentx"], strict=True)]
    return f"{statistics.median(ratios):.2g}"


def losses(report: dict[str, Any]) -> Iterator[str]:
    """Tables of each framework's figures, and of memory."""
    for framework in report["frameworks"]:
        yield f"### {NAMES[framework]}\n"
        mine = (row(f) for f in figures(report) if f.framework == framework)
        yield from table(COLUMNS, mine)
    yield "### Memory of forward and backward, (2048, 50257) in float32\n"
    rows = (
        (NAMES[framework], name, f"{times:.2f}")
        for framework, part in report["frameworks"].items()
        for name, times in part["peak"].items()
    )
    yield from table(("", "", "peak / size of the logits"), rows)


def overhead(report: dict[str, Any]) -> Iterator[str]:
    """Tables of what a small call is made of."""
    for framework, steps in report["frameworks"].items():
        yield f"### {NAMES[framework]}, a small call\n"
        rows = ((name, f"{seconds * 1e6:.1f} us") for name, seconds in steps.items())
        yield from table(("", "time"), rows)


def last_layer(report: dict[str, Any]) -> Iterator[str]:
    """Tables of the linear form."""
    for framework, results in report["frameworks"].items():
        for result in results:
            seconds = result["seconds"]
            yield f"### {NAMES[framework]}, {result['problem']}\n"
            rows = (
                (
                    name,
                    f"{statistics.median(times):.3g} s",
                    spread(times, seconds["xentx"]),
                    spread(times, seconds[FLOOR]),
                    f"{result['peak'][name] / 1e6:.0f} MB" if name in result["peak"] else "",
                )
                for name, times in seconds.items()
            )
            yield from table(("", "time", "/ xentx", "/ floor", "peak memory"), rows)


def traffic(report: dict[str, Any]) -> Iterator[str]:
    """Tables of the bytes that each target's programs move."""
    for target, dtypes in report["targets"].items():
        for dtype, counts in dtypes.items():
            if target == "inductor":
                yield INDUCTOR_HEAD.format(dtype=dtype)
            else:
                name = bytes_moved.TARGETS[target]
                yield f"### {name[0].upper()}{name[1:]}, {dtype}\n"
            yield from table(bytes_moved.headings(counts), bytes_moved.rows(counts))


def generate() -> str:
    """Return the page."""
    speed = json.loads(SPEED.read_text("utf-8"))
    machine = speed["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = HEAD.format(**{**machine, "command": COMMAND, "versions": versions})
    calls, linear, moved = (
        json.loads(path.read_text("utf-8")) for path in (OVERHEAD, LINEAR, BYTES)
    )
    compilers = moved["machine"]["versions"].items()
    compilers = ", ".join(f"{n} {v}" for n, v in compilers if n in {"jax", "optax", "torch"})
    shape = dict(zip(("rows", "classes"), moved["shape"], strict=True))
    lines = [
        *(head, SUMMARY_HEAD, *summary(speed, linear)),
        *(LOSSES_HEAD, *losses(speed)),
        *(OVERHEAD_HEAD.format(shape=tuple(calls["shape"])), *overhead(calls)),
        *(LINEAR_HEAD, *last_layer(linear)),
        *(BYTES_HEAD.format(versions=compilers, **shape), *traffic(moved)),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(generate(), "utf-8")
