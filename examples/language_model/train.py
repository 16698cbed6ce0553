"""Train one language model with each framework's own loss, and with xentx.

    python examples/language_model/train.py [--framework torch] [--steps 60]

Each run has its own process, so that its memory can be measured. The last layer has a few thousand
classes. A framework's own loss stores all its logits in memory at once.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import text

FRAMEWORKS = ("torch", "jax", "tensorflow")
LOSSES = ("native", "ours")
ROWS = 4096


def curve(framework: str, loss: str, steps: int, rows: int = ROWS) -> list[float]:
    """Train in this process, and return the loss of each step."""
    model = importlib.import_module(f"with_{framework}")
    classes, tokens = text.read()
    weights, batches = text.weights(classes), text.batches(tokens, steps, rows)
    return list(model.train(weights, batches, getattr(model, loss)))


def run(framework: str, loss: str, steps: int) -> dict[str, Any]:
    """Train, and measure the time and the increase of the peak memory of this process."""
    curve(framework, loss, steps=1, rows=512)  # a first call loads libraries and starts threads
    before, start = resident(), time.perf_counter()
    losses = curve(framework, loss, steps)
    seconds = time.perf_counter() - start
    return {"losses": losses, "seconds": seconds, "megabytes": resident("VmHWM") - before}


def run_apart(framework: str, loss: str, steps: int) -> dict[str, Any]:
    """Train in a new process."""
    command = [sys.executable, __file__, "--steps", str(steps), "--run", framework, loss]
    env = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def resident(key: str = "VmRSS") -> float:
    """Return the memory of this process in megabytes, or with VmHWM its peak since the last call.

    The value is NaN on systems other than Linux.
    """
    process = Path("/proc/self")
    if not (process / "clear_refs").exists():
        return math.nan
    lines = (process / "status").read_text().splitlines()
    if key == "VmRSS":
        (process / "clear_refs").write_text("5")  # reset the peak
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def difference(native: list[float], ours: list[float]) -> float:
    """Return the largest difference between two curves."""
    return max(abs(a - b) for a, b in zip(native, ours, strict=True))


def row(result: dict[str, Any], apart: str) -> tuple[str, ...]:
    """Cells of the table."""
    last, seconds = result["losses"][-1], result["seconds"]
    return f"{last:.6f}", apart, f"{result['megabytes']:.0f}", f"{seconds:.1f}"


def draw(curves: dict[tuple[str, str], list[float]], path: Path) -> None:
    """Write a page with all curves: lines for the frameworks' own losses, dots for xentx."""
    import plotly.graph_objects as go  # noqa: PLC0415 -- not in the processes that train

    figure = go.Figure(layout={"xaxis_title": "step", "yaxis_title": "loss"})
    for (framework, loss), losses in curves.items():
        mode = "markers" if loss == "xentx" else "lines"
        figure.add_scatter(y=losses, mode=mode, name=f"{framework}, {loss}")
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    """Run the chosen or the installed frameworks, print a table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("language_model.html"))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        json.dump(run(*options.run, options.steps), sys.stdout)
        return

    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    installed = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]
    curves = {}
    table = Table("", "loss", "last value", "curves apart by", "peak MB", "seconds")
    for framework in options.framework or installed:
        native, ours = (run_apart(framework, loss, options.steps) for loss in LOSSES)
        apart = f"{difference(native['losses'], ours['losses']):.1e}"
        table.add_row(framework, "its own", *row(native, ""))
        table.add_row("", "xentx", *row(ours, apart))
        curves[framework, "its own loss"] = native["losses"]
        curves[framework, "xentx"] = ours["losses"]
    Console().print(table)
    draw(curves, options.out)


if __name__ == "__main__":
    main()
