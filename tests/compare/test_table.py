"""The tables of a comparison in a terminal."""

import io
import re

import pytest

from xentx.compare import REGIMES, Plan, compare

pytest.importorskip("rich")


@pytest.fixture(scope="module")
def report():
    regimes = (REGIMES["worked-example"], REGIMES["gap"])
    return compare(Plan(frameworks=("numpy", "torch"), regimes=regimes, timed=False))


def printed(report, width, **options):
    from rich.console import Console

    from xentx.compare import _table

    file = io.StringIO()
    Console(file=file, width=width).print(_table.render(report, **options))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def measured(report):
    return [found for found in report.regimes[0].measurements if found.mean is not None]


def test_every_loss_has_a_row(report):
    lines = printed(report, 200, every=True)
    first = "\n".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("gap"))])
    for found in measured(report):
        name = re.sub(r"^xentx:\w+", "xentx", found.loss)
        assert f" {name}  " in first
    assert " (+" not in first


def test_losses_with_equal_results_share_a_row(report):
    lines = printed(report, 100)
    first = lines[: next(i for i, line in enumerate(lines) if line.startswith("gap"))]
    rows = [line for line in first if line.endswith(" -")]  # the time, which was not measured
    others = [int(found) for row in rows for found in re.findall(r" \(\+(\d+)\) ", row)]
    assert len(rows) + sum(others) == len(measured(report))
    frameworks = {loss.framework for loss in report.losses if loss.problem is None}
    if "torch" in frameworks:
        assert sum(others) > 0


@pytest.mark.parametrize("width", [80, 100])
def test_the_rows_fit(report, width):
    lines = printed(report, width)
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("loss "))
    rows = [line for line in lines[start:] if re.search(r"(accurate|close|wrong)\s+-$", line)]
    assert len(rows) >= 3
    assert all(len(line) <= width and re.search(r"^ \S.* \d", line) for line in rows)
    assert width < 100 or not any("…" in line for line in rows if "options=" not in line)
