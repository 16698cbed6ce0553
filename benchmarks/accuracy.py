"""Print the largest error of every loss in every regime, for xentx and native losses.

    python benchmarks/accuracy.py [--dtype float64] [--framework torch] [...]

It has the options of ``xentx compare``, and makes two tables of its JSON: errors of losses and of
gradients, in units in the last place of the true value. tests/matrix/test_accuracy.py checks the
bounds for xentx.
"""

import json
import subprocess
import sys

from rich import box
from rich.console import Console
from rich.table import Column, Table

COMMAND = ("xentx", "compare", "--regime", "all", "--no-time", "--json", "--fail-on", "none")
WIDTH = 240  # for a table with a column for each regime


def tables(report: dict) -> list[Table]:
    """Make a table with a row for each loss, for each kind of error."""
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
