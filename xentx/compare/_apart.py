"""Run a comparison in processes: one for each framework, and one for each backend of Keras.

Keras selects its backend when it is imported, so each backend needs its own process. Several
processes can run at once. If a framework crashes its process, only its own rows are lost.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeVar

from xentx.compare import _json, _worker
from xentx.compare._evaluate import Unavailable
from xentx.compare._run import Plan, Progress, assemble, compare, compare_some
from xentx.compare.report import CornerResult, Loss, Measurement, Report
from xentx.natives import Native

KERAS_BACKENDS = ("tensorflow", "jax", "torch", "numpy")
"""Backends of Keras, its default first. On NumPy it has losses and no gradients."""

_COMMAND = (sys.executable, "-P", "-m", _worker.__name__)

# By default, these frameworks reserve all memory of a GPU, and others could not use it.
_SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


Row = TypeVar("Row", Loss, Measurement, CornerResult)


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of a worker that returned no report."""

    reason: str


def keras_backends() -> tuple[str, ...]:
    """List the installed backends of Keras. Empty if Keras is not installed."""
    if find_spec("keras") is None:
        return ()
    return tuple(name for name in KERAS_BACKENDS if find_spec(name) is not None)


def compare_apart(plan: Plan, progress: Progress = lambda *_: None, *, jobs: int = 1) -> Report:
    """Compare losses as `compare` does, with a process for each framework.

    Parameters
    ----------
    plan : Plan
        What to compare. Its corners are those of `CORNERS` or of `BINARY_CORNERS`.
    progress : callable
        Called before each step, from several threads but by one at a time.
    jobs : int
        Number of processes that run at once. More than one make the times less accurate.

    Returns
    -------
    Report
        The results, in the order of `compare`.

    Raises
    ------
    ValueError
        If there is no such framework or loss.
    """
    chosen = plan.chosen()
    shares = split(chosen)
    # A single framework needs no process of its own, which would take longer.
    if len(shares) <= 1 and not any(native.backend for native in chosen):
        return compare(plan, progress)
    steps = len(plan.regimes) * len(plan.dtypes) + len(plan.corners)
    board = _Board(len(chosen) * steps, progress)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        workers = _Workers(_worker.describe(plan, Path(folder)))

        def measured(name: str) -> Report | Crash:
            share = shares[name]
            answer = workers.ask(share, lambda done, what: board.tell(name, done, what))
            board.tell(name, len(share) * steps, f"{name} is done")
            return answer

        # The longest first, so that the processes end at about the same time.
        names = sorted(shares, key=lambda name: -_weight(shares[name]))
        try:
            found = dict(zip(names, pool.map(measured, names), strict=True))
        except BaseException:
            # The pool would wait for its threads, and they for the workers.
            workers.stop()
            raise
    return merge(plan, chosen, {name: found[name] for name in shares})


def split(chosen: Sequence[Native]) -> dict[str, list[Native]]:
    """Group losses into those that one process can measure."""
    shares: dict[str, list[Native]] = {}
    for native in chosen:
        name = f"{native.framework}[{native.backend}]" if native.backend else native.framework
        shares.setdefault(name, []).append(native)
    return shares


def _weight(share: Sequence[Native]) -> int:
    # Compiling takes most of the time.
    return sum(10 if native.compiled else 1 for native in share)


def merge(plan: Plan, chosen: Sequence[Native], found: Mapping[str, Report | Crash]) -> Report:
    """Combine the reports of the shares.

    Parameters
    ----------
    plan : Plan
        What was compared.
    chosen : sequence of Native
        All losses of the plan, in order.
    found : mapping
        The report of each share, or how its worker ended.

    Returns
    -------
    Report
        It has a row for each loss, also if the worker crashed. A crash is a failure if a
        measurement of one of the share's losses could be one.
    """
    shares = split(chosen)
    parts, crashes = [], []
    for name, part in found.items():
        if isinstance(part, Report):
            parts.append(part)
            continue
        parts.append(compare_some(plan, shares[name], Unavailable(part.reason), lambda *_: None))
        ours = any(native.is_xentx for native in shares[name])
        if plan.fail_on == "any" or (plan.fail_on == "xentx" and ours):
            crashes.append(f"{name}: {part.reason}")
    place = {native.id: at for at, native in enumerate(chosen)}

    def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
        return tuple(
            sorted(rows, key=lambda row: place[row.id if isinstance(row, Loss) else row.loss])
        )

    return assemble(
        plan,
        chosen,
        losses=in_order(loss for part in parts for loss in part.losses),
        regimes=tuple(
            replace(same[0], measurements=in_order(row for one in same for row in one.measurements))
            for same in zip(*(part.regimes for part in parts), strict=True)
        ),
        corners=tuple(
            replace(same[0], results=in_order(row for one in same for row in one.results))
            for same in zip(*(part.corners for part in parts), strict=True)
        ),
        crashes=tuple(crashes),
    )


class _Board:
    """Adds up the steps of several workers and reports the progress."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._total, self._progress = total, progress

    def tell(self, name: str, done: int, what: str) -> None:
        with self._lock:
            self._done[name] = done
            self._progress(sum(self._done.values()), self._total, what)


class _Workers:
    """The worker processes, which can be stopped together."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def stop(self) -> None:
        """Kill the running workers, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def ask(self, share: Sequence[Native], told: Callable[[int, str], None]) -> Report | Crash:
        """Let a worker measure a share, and return its report."""
        question = _worker.question(self._described, [native.id for native in share])
        with tempfile.TemporaryFile() as noise:
            process = self._start(environment_of(share[0].backend), noise)
            if process is None:
                return Crash("the comparison was stopped")
            with process:
                try:
                    report = _talk(process, question, told)
                    return report or Crash(_ending(process.wait(), noise))
                finally:
                    # Frameworks may crash or take long at exit, which does not matter here.
                    process.kill()
                    with self._lock:
                        self._running.discard(process)

    def _start(self, environment: dict[str, str], noise: IO[bytes]) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(  # noqa: S603 -- this Python, and a module of xentx
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                encoding="utf-8",
                env=environment,
            )
            self._running.add(process)
        return process


def environment_of(keras_backend: str | None) -> dict[str, str]:
    environment = _SHARED_GPU | os.environ
    # The worker imports the same modules as this process.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if keras_backend is not None:
        environment["KERAS_BACKEND"] = keras_backend
    return environment


def _talk(
    process: subprocess.Popen[str], question: str, told: Callable[[int, str], None]
) -> Report | None:
    """Send the question to a worker and read its report. None if it ends before."""
    if process.stdin is None or process.stdout is None:
        return None
    try:
        process.stdin.write(question)
        process.stdin.flush()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            process.stdin.close()  # which flushes, and can fail again
        return None
    for line in process.stdout:
        if not line.endswith("\n"):
            break
        message = json.loads(line)
        if "report" in message:
            return _json.loads(message["report"])
        told(message["done"], message["next"])
    return None


def _ending(status: int, noise: IO[bytes]) -> str:
    """Describe how a process ended, in one line."""
    how = f"with exit status {status}"
    if status < 0:
        how = f"by signal {-status}, {signal.strsignal(-status)}"
    noise.seek(0)
    last = noise.read().decode(errors="replace").strip().rpartition("\n")[2]
    return f"its process ended {how}" + (f": {last}" if last else "")
