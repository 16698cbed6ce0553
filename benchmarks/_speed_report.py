"""Results from speed.py's JSON, for its tables, its plot and the documentation."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table


class Figure(NamedTuple):
    """One candidate of xentx on one workload, compared with the fastest peer."""

    framework: str
    workload: str
    ours: str
    seconds: float
    peer: str
    peer_seconds: float
    ratio: float
    lowest: float
    highest: float
    limit: float  # seconds to move the bytes that must be moved


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Yield the results of all workloads. A ratio is the median of the ratios of the rounds."""
    for framework, part in report["frameworks"].items():
        for result in part["results"]:
            rounds = result["seconds"]
            mine = [name for name in rounds if name.startswith("xentx")]
            peers = {name: times for name, times in rounds.items() if name not in mine}
            peer = min(peers, key=lambda name: statistics.median(peers[name]))
            moves = "copy" if "backward" in result["workload"] else "read"
            for name in mine:
                ratios = [
                    theirs / ours for theirs, ours in zip(peers[peer], rounds[name], strict=True)
                ]
                yield Figure(
                    framework,
                    result["workload"],
                    name,
                    statistics.median(rounds[name]),
                    peer,
                    statistics.median(peers[peer]),
                    statistics.median(ratios),
                    min(ratios),
                    max(ratios),
                    result["bytes"] / part["bandwidth"][moves],
                )


def duration(seconds: float) -> str:
    """Format a time with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def row(figure: Figure) -> tuple[str, ...]:
    """Cells of a row of a table."""
    # Small problems fit in the caches, so this limit does not apply.
    far = figure.seconds / figure.limit
    return (
        figure.workload,
        figure.ours,
        duration(figure.seconds),
        figure.peer,
        duration(figure.peer_seconds),
        f"{figure.ratio:.2f} ({figure.lowest:.2f} to {figure.highest:.2f})",
        f"{far:.2f}" if figure.limit > 1e-3 else "-",
    )


COLUMNS = ("workload", "", "time", "fastest peer", "time", "ratio (rounds)", "time / limit")


def tables(report: dict[str, Any]) -> list[Table]:
    """Make a table for each framework, and one of peak memory."""
    found = []
    for framework in report["frameworks"]:
        table = Table(*COLUMNS, title=framework, box=box.SIMPLE)
        for figure in figures(report):
            if figure.framework == framework:
                table.add_row(*row(figure))
        found.append(table)
    memory = Table("", "peak / size of the logits", title="Memory", box=box.SIMPLE)
    for framework, part in report["frameworks"].items():
        for name, times in part["peak"].items():
            memory.add_row(f"{framework}: {name}", f"{times:.2f}")
    return [*found, memory]


def plot(report: dict[str, Any], path: Path) -> None:
    """Write a page with a bar for each ratio."""
    import plotly.graph_objects as go

    drawn = go.Figure()
    for framework in report["frameworks"]:
        mine = [f for f in figures(report) if f.framework == framework]
        drawn.add_bar(
            name=framework,
            y=[f"{f.workload}, {f.ours}" for f in mine],
            x=[f.ratio for f in mine],
            error_x={
                "symmetric": False,
                "array": [f.highest - f.ratio for f in mine],
                "arrayminus": [f.ratio - f.lowest for f in mine],
            },
            orientation="h",
        )
    drawn.add_vline(x=1)
    drawn.update_layout(
        title="Time of the fastest peer over xentx's", xaxis_type="log", height=1600
    )
    drawn.write_html(path, include_plotlyjs=True)
