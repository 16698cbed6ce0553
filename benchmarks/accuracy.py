"""Print the largest error of every loss in every regime, xentx's beside the natives.

    python benchmarks/accuracy.py [--dtype float64] [--framework torch] [...]

takes the options of ``xentx compare``, whose JSON it turns into two tables: errors of losses and
of gradients, in units in the last place at the true value. xentx's bounds are asserted by
tests/matrix/test_accuracy.py.
"""

import json
import subprocess
import sys

from rich import box
from rich.console import Console
from rich.table import Column, Table

COMMAND = ("xentx", "compare", "--regime", "all", "--no-time", "--json", "--fail-on", "none")
WIDTH = 240  # of a table with a column for each regime


def tables(report: dict) -> list[Table]:
    """Make a table of losses by regimes for each kind of error."""
    found = []
    for kind in ("loss", "gradient"):
        title = f"Largest error of the {kind}, in ULP of {report['regimes'][0]['dtype']}"
        names = (Column(r["name"], overflow="fold", justify="right") for r in report["regimes"])
        table = Table(Column("", no_wrap=True), *names, title=title, box=box.SIMPLE)
        for i, loss in enumerate(report["losses"]):
            cells = [regime["measurements"][i][f"{kind}_errors"] for regime in report["regimes"]]
            if any(cells):
                figures = (
                    "-" if cell is None else f"{float(cell['max_ulp']):.3g}" for cell in cells
                )
                table.add_row(loss["id"], *figures, style="bold" if loss["is_xentx"] else "")
        found.append(table)
    return found


if __name__ == "__main__":
    done = subprocess.run((*COMMAND, *sys.argv[1:]), stdout=subprocess.PIPE, check=True)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(*tables(json.loads(done.stdout)))
