"""Time xentx.linear_cross_entropy and its peers side by side, and measure their memory.

    python benchmarks/linear.py [--framework torch] [--only small] [--dtype float32] [--rounds 3]

One process for each framework and problem, in which the candidates take turns, one call each in a
round, in alternating order: ratios are of neighbours in time. What is timed is the value, a mean,
and its gradients by hidden and head. The floor is three matrix products of the same sizes, by the
framework's own BLAS and into memory that is there already.

Peak memory is what a call adds to the resident set of a fresh process, beyond the arguments and the
two gradients.
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
    "tiny": (512, 64, 4000),  # for trying this program out
    "small": (2048, 768, 50257),
    "large": (4096, 1024, 128256),
}
DTYPES = ("float32", "bfloat16")
# Logits rounded to bfloat16 make a mean that is off in its third digit; losses that are added up in
# it, as in PyTorch's own chunks, one that is off in its second.
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}


def ready(framework: str, problem: Problem) -> dict[str, Ready]:
    """Candidates that have run once, which compiles and touches memory, and that agree."""
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
    """Bytes that a candidate's call adds to the peak of the resident set, without its results."""
    make = CANDIDATES[framework]()[name]
    make(Problem(*SHAPES["tiny"], problem.dtype)).call()  # loads and starts whatever is needed
    return added_peak(make(problem).call) - problem.gradient_bytes


def spread(above: list[float], below: list[float]) -> str:
    """Median of the rounds' ratios, and their extremes."""
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
        print(json.dumps(found))  # noqa: T201 -- to `apart`
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
            if not result["seconds"]:  # no products of this dtype
                continue
            names = [name for name in result["seconds"] if name != FLOOR]
            result["peak"] = {n: apart(__file__, *arguments, "--peak", n) for n in names}
            results.append(result)
            print(framework, result["problem"], file=sys.stderr)  # noqa: T201 -- a sign of life
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(*tables(report))


if __name__ == "__main__":
    main()
