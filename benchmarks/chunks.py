"""Print time and peak memory of xentx.linear_cross_entropy for several values of `chunk`.

    python benchmarks/chunks.py [--framework numpy] [--rounds 3]

Each value runs in a new process, which computes the loss and its gradients with respect to hidden
and head. The time is the minimum of the rounds. Peak memory is the increase of the resident set
during a call, without the arguments and the two gradients.
"""

import argparse
import json
import timeit
from collections.abc import Callable
from typing import Any

from _linear_peers import Problem
from _measure import added_peak, apart

PROBLEM = Problem(2048, 768, 50257, "float32")
FIRST = Problem(64, 64, 4000, "float32")  # a first call loads libraries and starts threads
CHUNKS = ("auto", "64", "16MB", "64MB", "256MB", "1GB")
FRAMEWORKS = {"numpy": "NumPy", "torch": "PyTorch"}


def call_of(framework: str, problem: Problem, chunk: int | str) -> Callable[[], Any]:
    """Make a call that returns the loss and both gradients."""
    import xentx

    arrays = problem.arrays()
    if framework == "numpy":
        both = xentx.value_and_grad(xentx.linear_cross_entropy)
        return lambda: both(*arrays, chunk=chunk)

    import torch

    hidden, head, target = map(torch.from_numpy, arrays)
    factors = (hidden.requires_grad_(), head.requires_grad_())

    def call() -> Any:
        loss = xentx.linear_cross_entropy(*factors, target, chunk=chunk)
        return loss, torch.autograd.grad(loss, factors)

    return call


def measure(framework: str, given: str, rounds: int) -> dict[str, float]:
    """Seconds and bytes of one value of `chunk`."""
    chunk = int(given) if given.isdigit() else given
    call_of(framework, FIRST, chunk)()
    call = call_of(framework, PROBLEM, chunk)
    peak = added_peak(call) - PROBLEM.gradient_bytes
    return {"seconds": min(timeit.repeat(call, number=1, repeat=rounds)), "peak": peak}


def main() -> None:
    """Run the processes and print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker, options.rounds)))  # noqa: T201 -- `apart` reads it
        return
    print(f"| {PROBLEM} | chunk | time / that of auto | peak memory |")  # noqa: T201
    print("| --- | --- | --- | --- |")  # noqa: T201
    for framework in options.framework or FRAMEWORKS:
        found = {}
        for chunk in CHUNKS:
            worker = ("--worker", framework, chunk)
            found[chunk] = apart(__file__, *worker, "--rounds", str(options.rounds))
            ratio = found[chunk]["seconds"] / found["auto"]["seconds"]
            peak = found[chunk]["peak"] / 1e6
            print(f"| {FRAMEWORKS[framework]} | {chunk} | {ratio:.2f} | {peak:.0f} MB |")  # noqa: T201


if __name__ == "__main__":
    main()
