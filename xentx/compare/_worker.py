"""The process that measures a part of a comparison: ``python -m xentx.compare._worker``.

It reads one line of JSON from standard input and writes lines of JSON to standard output:
``{"done": 3, "next": "..."}`` before each step and ``{"report": "..."}`` at the end. No pickles are
exchanged. The parent process keeps standard input open. When it is closed, the worker ends, on
every operating system.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from xentx.compare import _json
from xentx.compare._evaluate import Availability
from xentx.compare._run import Plan, compare_some
from xentx.compare.corners import BINARY_CORNERS, CORNERS
from xentx.compare.regimes import REGIMES, Regime

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_PLAIN = ("frameworks", "losses", "loss", "dtypes", "seed", "timed", "keras_backends", "fail_on")


def describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """Describe a plan as JSON values.

    Parameters
    ----------
    plan : Plan
        What to compare. Its corners are those of `CORNERS` or of `BINARY_CORNERS`.
    folder : Path
        Folder for logits and targets that a worker cannot generate itself, or only slowly.

    Returns
    -------
    dict
        The argument of `restore`.
    """
    described: dict[str, Any] = {name: getattr(plan, name) for name in _PLAIN}
    described["corners"] = [corner.name for corner in plan.corners]
    described["regimes"] = [
        _describe_regime(regime, plan.seed, folder / f"{at}.npz")
        for at, regime in enumerate(plan.regimes)
    ]
    return described


def _describe_regime(regime: Regime, seed: int, path: Path) -> dict[str, str]:
    # A regime that needs a library fits a model, which is done once.
    known = REGIMES.get(regime.name) is regime
    if known and (regime.needs is None or find_spec(regime.needs) is None):
        return {"name": regime.name}
    logits, target = regime.generate(np.random.default_rng(seed))
    np.savez(path, logits=logits, target=target)
    return {"name": regime.name, "description": regime.description, "path": str(path)}


def restore(described: dict[str, Any]) -> Plan:
    """Make a plan from the result of `describe`, which may have been converted to JSON."""
    plain: dict[str, Any] = {
        name: tuple(described[name]) if isinstance(described[name], list) else described[name]
        for name in _PLAIN
    }
    corners = CORNERS | BINARY_CORNERS
    return Plan(
        **plain,
        corners=tuple(corners[name] for name in described["corners"]),
        regimes=tuple(_restore_regime(**regime) for regime in described["regimes"]),
    )


def _restore_regime(name: str, description: str = "", path: str | None = None) -> Regime:
    if path is None:
        return REGIMES[name]
    with np.load(path, allow_pickle=False) as file:
        logits, target = file["logits"], file["target"]
    return Regime(name, description, lambda _: (logits, target))


def answer(question: dict[str, Any], out: TextIO) -> None:
    """Measure the losses of a question, and write progress and report."""
    plan, ids = restore(question["plan"]), question["losses"]
    known = {native.id: native for native in plan.chosen()}

    def tell(**message: object) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    report = compare_some(
        plan,
        [known[name] for name in ids],
        Availability(),
        lambda done, _, what: tell(done=done, next=what),
    )
    tell(report=_json.dumps(report))


def question(described: dict[str, Any], ids: Sequence[str]) -> str:
    """Return the line that asks for the losses with these ids of a described plan."""
    return json.dumps({"plan": described, "losses": list(ids)}) + "\n"


def _end_with_the_asker() -> None:
    # An exiting interpreter would wait for the lock of sys.stdin.
    while os.read(_STDIN, 1):
        pass
    os._exit(1)


def main() -> None:
    """Answer one question."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    # Frameworks print to file descriptor 1, also from C++. It must not mix with the answer.
    with os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8") as out:
        os.dup2(_STDERR, _STDOUT)
        answer(asked, out)


if __name__ == "__main__":
    main()
