"""Check random problems for a given time: ``python -m xentx.testing.fuzz``.

It runs the checks of `test_any_problem` in turn, on every route of the frameworks in
XENTX_TEST_BACKENDS, with the engine in XENTX_ENGINE. Hypothesis shrinks the first problem that
fails, and prints it. The same seed gives the same problems.
"""

import argparse
import collections
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, given, seed, settings

from xentx.testing._checks import CHECKS
from xentx.testing._routes import Route, clear_compiled, requested_frameworks, routes

# Number of problems of one check on one route before the next check runs.
BATCH = 50


def _run(check: Callable[..., None], route: Route, number: int) -> None:
    """Run one batch of problems with the seed `number`."""

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: Any) -> None:
        check(route, data.draw)

    run()
    clear_compiled()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks, and print the number of problems of each check and route."""
    parser = argparse.ArgumentParser(prog="python -m xentx.testing.fuzz", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60, help="time after which no new batch starts"
    )
    parser.add_argument("--problems", type=int, help="number of problems after which it stops")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first batch")
    parser.add_argument("--routes", nargs="+", help="names of routes (default: all eager ones)")
    parser.add_argument("--checks", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    given_arguments = parser.parse_args(arguments)
    every = {route.name: route() for route in routes(*requested_frameworks())}
    eager = [name for name, route in every.items() if not route.traced]
    chosen = [every[name] for name in given_arguments.routes or eager]
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    end = time.monotonic() + given_arguments.seconds
    enough = given_arguments.problems or float("inf")
    pairs = itertools.product(given_arguments.checks, chosen)
    try:
        for turn, (name, route) in enumerate(itertools.cycle(pairs)):
            if time.monotonic() > end or counts.total() >= enough:
                break
            _run(CHECKS[name], route, given_arguments.seed + turn)
            counts[name, route.name] += BATCH
    finally:
        for name in given_arguments.checks:
            line = ", ".join(f"{route.name} {counts[name, route.name]:,}" for route in chosen)
            print(f"{name}: {line}")
        print(f"{counts.total():,} problems, none of which failed")


if __name__ == "__main__":
    main()
