"""Time xentx and its peers in turns, and write the results.

    python benchmarks/speed.py [--framework numpy] [--only large] [--out benchmarks/speed.json]

There is one process for each framework. For each workload, the candidates are timed in blocks of
calls by `timeit`, in rounds of alternating order. The speed of a machine changes over time, on
shared machines by up to a factor of two, so only times that are measured close together can be
compared. (pyperf and pytest-benchmark finish one candidate before they start the next.) The ratio
of a round is the median of the fastest peer divided by the median of xentx. The median of the
rounds is reported, with the minimum and maximum.

The limit of the machine is printed too: the time divided by the time to move the same bytes, at the
bandwidth of sums or copies in two threads, which are timed in the same process. Peak memory is the
increase of the resident set during a first call in a new process.

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
    """Return all workloads, or only large or small ones."""
    found = []
    for shape, axis in SHAPES.items():
        large = int(np.prod(shape)) >= LARGE
        if only not in ("all", "large" if large else "small"):
            continue
        for dtype in ("float32", "bfloat16"):
            found += [Workload(shape, axis % len(shape), dtype, g) for g in (False, True)]
    return found


def timed(call: Callable[[], Any], number: int) -> float:
    """Seconds of a call, in a block of `number` calls."""
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
    """Bytes per second that two threads read in a sum, and that they read and write in a copy."""
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
    """Increase of the peak memory in a first call, divided by the size of the logits."""
    make = CANDIDATES[framework]()[name]
    small = make(Workload((64, 1000), 1, "float32", gradient=True))
    if small is not None:  # a first call loads libraries and starts threads
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
        print(json.dumps(peak(options.worker, options.peak)))  # noqa: T201 -- `apart` reads it
        return
    if options.worker:
        found = []
        for workload in workloads(options.only):
            found.append(measure(options.worker, workload))
            print(found[-1]["workload"], file=sys.stderr)  # noqa: T201 -- progress
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
