"""Time xentx and its peers side by side, and write what comes of it.

    python benchmarks/speed.py [--framework numpy] [--only large] [--out benchmarks/speed.json]

One process for each framework. In it each workload's candidates are timed in blocks of calls, by
`timeit`, in rounds of alternating order: machines drift, by up to a factor of two on shared ones,
and neighbours in time can be compared where a morning's and an evening's runs can't. (pyperf and
pytest-benchmark time one candidate to the end before they start the next.) A ratio is the fastest
peer's median over xentx's, of each round; the one quoted is the rounds' median, beside their
extremes.

How far that is from what the machine can do at all is printed too: the time over that of moving the
same bytes, at the bandwidth of two threads' sums or copies that are timed in the same process. Peak
memory is what the first call adds to the resident set of a fresh process.

`docs/generate_performance.py` makes a page of the JSON.
"""

import argparse
import json
import sys
import threading
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _measure import added_peak, apart, machine
from _peers import CANDIDATES, Workload

SHAPES = {
    (32, 10): -1,
    (256, 1000): -1,
    (4096, 1000): -1,
    (2048, 50257): -1,
    (8192, 32000): -1,
    (8, 21, 256, 256): 1,
}
LARGE = 50_000_000
ROUNDS = 3
BLOCK_SECONDS = 0.15
PEAK = Workload((2048, 50257), 1, "float32", gradient=True)


def workloads(only: str) -> list[Workload]:
    """All of them, or the large or the small ones."""
    found = []
    for shape, axis in SHAPES.items():
        large = int(np.prod(shape)) >= LARGE
        if only not in ("all", "large" if large else "small"):
            continue
        for dtype in ("float32", "bfloat16"):
            found += [Workload(shape, axis % len(shape), dtype, g) for g in (False, True)]
    return found


def timed(call: Callable[[], Any], number: int) -> float:
    """Seconds a call, in a block of so many."""
    return timeit.timeit(call, number=number) / number


def measure(framework: str, workload: Workload) -> dict[str, Any]:
    """Time all candidates of a framework on a workload."""
    calls, numbers = {}, {}
    for name, make in CANDIDATES[framework]().items():
        call = make(workload)
        if call is None:
            continue
        calls[name] = call
        timed(call, 2)  # compiles, and touches memory
        numbers[name] = max(1, int(BLOCK_SECONDS / max(timed(call, 1), 1e-7)))
        numbers[name] = min(numbers[name], 20_000)
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(ROUNDS):
        for name in list(calls) if i % 2 == 0 else list(reversed(calls)):
            timed(calls[name], 1)
            rounds[name].append(timed(calls[name], numbers[name]))
    return {"workload": str(workload), "bytes": workload.bytes_moved, "seconds": rounds}


def bandwidth() -> dict[str, float]:
    """Bytes a second that two threads read, and that they read and write in a copy."""
    halves = np.ones((2, 1 << 26), np.float32)
    copies = np.empty_like(halves)

    def both(work: Callable[[int], Any]) -> float:
        def run() -> None:
            threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        run()
        return min(timeit.repeat(run, number=1, repeat=7))

    return {
        "read": halves.nbytes / both(lambda i: halves[i].max()),
        "copy": 2 * halves.nbytes / both(lambda i: np.copyto(copies[i], halves[i])),
    }


def peak(framework: str, name: str) -> float | None:
    """Size of what a first call adds to the peak of the resident set, over that of the logits."""
    make = CANDIDATES[framework]()[name]
    small = make(Workload((64, 1000), 1, "float32", gradient=True))
    if small is not None:  # loads and starts whatever is needed
        small()
    call = make(PEAK)
    if call is None:
        return None
    return added_peak(call) / (np.prod(PEAK.shape) * 4)


def main() -> None:
    """Run the processes, print tables, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=list(CANDIDATES))
    parser.add_argument("--only", choices=["small", "large", "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak(options.worker, options.peak)))  # noqa: T201 -- to `apart`
        return
    if options.worker:
        found = []
        for workload in workloads(options.only):
            found.append(measure(options.worker, workload))
            print(found[-1]["workload"], file=sys.stderr)  # noqa: T201 -- a sign of life
        print(json.dumps({"bandwidth": bandwidth(), "results": found}))  # noqa: T201
        return

    from rich.console import Console

    from _speed_report import plot, tables

    report: dict[str, Any] = {"machine": machine(), "frameworks": {}}
    for framework in options.framework or CANDIDATES:
        part = apart(__file__, "--worker", framework, "--only", options.only)
        names = list(CANDIDATES[framework]())
        peaks = {n: apart(__file__, "--worker", framework, "--peak", n) for n in names}
        part["peak"] = {n: size for n, size in peaks.items() if size is not None}
        report["frameworks"][framework] = part
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(*tables(report))
    plot(report, options.out.with_suffix(".html"))


if __name__ == "__main__":
    main()
