"""Time xentx.linear_cross_entropy and its peers in turns, and measure their memory.

    python benchmarks/linear.py [--framework torch] [--only small] [--dtype float32] [--rounds 3]

There is one process for each framework and problem. In each round every candidate is called once,
in alternating order, and ratios are of calls in the same round. A call computes the value, a mean,
and its gradients with respect to hidden and head. The floor is three matrix products of the same
sizes, with the framework's own BLAS, written into existing memory.

Peak memory is the increase of the resident set during a call in a new process, without the
arguments and the two gradients.
"""

import argparse
import itertools
import json
import statistics
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _linear_peers import CANDIDATES, FLOOR, Problem, Ready
from _measure import added_peak, apart, machine

SHAPES = {
    "tiny": (512, 64, 4000),  # to try this program
    "small": (2048, 768, 50257),
    "large": (4096, 1024, 128256),
}
DTYPES = ("float32", "bfloat16")
# Logits rounded to bfloat16 change the third digit of the mean. Losses that are summed in bfloat16,
# as in PyTorch's own chunks, change the second digit.
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}


def ready(framework: str, problem: Problem) -> dict[str, Ready]:
    """Return candidates that have run once and agree. The first run compiles and touches memory."""
    found = {}
    for name, make in CANDIDATES[framework]().items():
        candidate = make(problem)
        if candidate is None:
            continue
        found[name] = candidate
        result = candidate.call()
        if name == "xentx":
            expected = float(result[0])
        elif name != FLOOR and abs(float(result[0]) / expected - 1) > AGREEMENT[problem.dtype]:
            msg = f"{framework}, {problem}: {name} is {result[0]}, xentx is {expected}"
            raise AssertionError(msg)
    return found


def measure(framework: str, problem: Problem, rounds: int) -> dict[str, Any]:
    """Time all candidates of a framework on a problem."""
    candidates = ready(framework, problem)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds):
        for name in list(candidates) if i % 2 == 0 else reversed(candidates):
            seconds[name].append(timeit.timeit(candidates[name].call, number=1))
    return {
        "problem": str(problem),
        "operations": problem.operations,
        "seconds": seconds,
        "temporary": {name: candidate.temporary for name, candidate in candidates.items()},
    }


def peak(framework: str, name: str, problem: Problem) -> int:
    """Bytes that a call adds to the peak of the resident set, without its results."""
    make = CANDIDATES[framework]()[name]
    # a first call loads libraries and starts threads
    make(Problem(*SHAPES["tiny"], problem.dtype)).call()
    return added_peak(make(problem).call) - problem.gradient_bytes


def spread(above: list[float], below: list[float]) -> str:
    """Format the median, minimum and maximum of the ratios of the rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def tables(report: dict[str, Any]) -> Iterator[Any]:
    """Make a table for each framework and problem."""
    from rich import box
    from rich.table import Table

    def megabytes(size: int | None) -> str:
        return "-" if size is None else f"{size / 1e6:.0f}"

    columns = ("", "seconds", "/ xentx (rounds)", "/ floor (rounds)", "peak MB", "XLA's own MB")
    for framework, results in report["frameworks"].items():
        for result in results:
            seconds = result["seconds"]
            rate = result["operations"] / statistics.median(seconds[FLOOR]) / 1e9
            title = f"{framework}, {result['problem']}; floor: {rate:.0f} GFLOP/s"
            table = Table(*columns, title=title, box=box.SIMPLE)
            for name, times in seconds.items():
                table.add_row(
                    name,
                    f"{statistics.median(times):.3g}",
                    spread(times, seconds["xentx"]),
                    spread(times, seconds[FLOOR]),
                    megabytes(result["peak"].get(name)),
                    megabytes(result["temporary"][name]),
                )
            yield table


def main() -> None:
    """Run the processes, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(CANDIDATES))
    parser.add_argument("--only", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--dtype", choices=[*DTYPES, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/linear.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        problem = Problem(*SHAPES[options.only], options.dtype)
        found = (
            peak(options.worker, options.peak, problem)
            if options.peak
            else measure(options.worker, problem, options.rounds)
        )
        print(json.dumps(found))  # noqa: T201 -- `apart` reads it
        return

    from rich.console import Console

    sizes = ("small", "large") if options.only == "all" else (options.only,)
    dtypes = DTYPES if options.dtype == "all" else (options.dtype,)
    report: dict[str, Any] = {"machine": machine(), "frameworks": {}}
    for framework in options.framework or CANDIDATES:
        results = report["frameworks"][framework] = []
        for size, dtype in itertools.product(sizes, dtypes):
            arguments = ("--worker", framework, "--only", size, "--dtype", dtype)
            result = apart(__file__, *arguments, "--rounds", str(options.rounds))
            if not result["seconds"]:  # the framework has no products of this dtype
                continue
            names = [name for name in result["seconds"] if name != FLOOR]
            result["peak"] = {n: apart(__file__, *arguments, "--peak", n) for n in names}
            results.append(result)
            print(framework, result["problem"], file=sys.stderr)  # noqa: T201 -- progress
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(*tables(report))


if __name__ == "__main__":
    main()
