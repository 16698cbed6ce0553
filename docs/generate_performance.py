"""Write docs/performance.md from what the benchmarks have measured; nothing is typed.

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

Measured on {processor}, {processors} processors, {system}, Python {python}, with {versions};
engine of xentx: {engine}.

Every ratio is of two neighbours in time, in one process, in rounds of alternating order: the median
of the rounds, and their extremes. Above 1 xentx is the quicker one. On a shared machine, and most
are, a ratio within a third of 1 says little.

## Losses of logits

`python benchmarks/speed.py`. The fastest peer is whichever of the framework's own losses took least
time on that workload. The limit is the time in which this machine's memory moves the logits, and
with the backward pass the gradient, at the bandwidth that was measured beside.
"""

OVERHEAD_HEAD = """\
## Where a small problem's time goes

`python benchmarks/overhead.py`: one call on {shape} in float32, and what its framework takes for a
call that computes all but nothing, which no loss can do without.
"""

LINEAR_HEAD = """\
## The last layer and its loss

`python benchmarks/linear.py`: value and gradients by hidden and head, for so many tokens, features
and classes. The floor is three matrix products of these sizes by the framework's own BLAS; nothing
that forms the gradients takes less. Peak memory is what a call adds beyond its arguments and the
gradients.

In bfloat16 the floor, like the frameworks' own losses, has products whose results are rounded to
bfloat16, for which a processor may have units of its own. xentx's logits are of float32, and so is
what it adds the head's gradient up in, at the price of a fourth product and of slower units:
PyTorch and TensorFlow have no product of bfloat16 with a float32 result on CPUs. PyTorch's own
chunks add the losses themselves up in bfloat16, and miss the mean by some percent.
"""

BYTES_HEAD = """\
## Bytes moved

`python benchmarks/bytes_moved.py`: what the portable core and its peers read and write in memory,
in bytes for each logit, read + written. They are counted in the program that XLA makes of it for
{rows} rows of {classes} classes, with
{versions}.
Nothing runs: the programs for an H100 and a TPU v5e are compiled on a machine that has neither. It
is no time, but where memory limits a loss, as it does on accelerators, time follows it.

One pass over float32 logits reads 4 bytes. A loss takes a pass for the maximum and one for the sum,
and its gradient a third, which writes 4. Soft targets have as many bytes as the logits.
"""

INDUCTOR_HEAD = """\
### torch.compile on CPUs, {dtype}

How many arrays of the logits' size the generated code allocates, the gradient among them, and how
many loops over classes it has: one loop is one pass.
"""


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
        *(head, *losses(speed)),
        *(OVERHEAD_HEAD.format(shape=tuple(calls["shape"])), *overhead(calls)),
        *(LINEAR_HEAD, *last_layer(linear)),
        *(BYTES_HEAD.format(versions=compilers, **shape), *traffic(moved)),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(generate(), "utf-8")
