"""``xentx info``, ``natives`` and ``regimes``. Only ``info`` imports frameworks."""

import platform

from rich.table import Table
from rich.text import Text

import xentx
import xentx.natives as records
from xentx.cli._console import console
from xentx.cli._quiet import quiet
from xentx.compare.regimes import REGIMES


def info() -> None:
    """Print versions, backends and engines, and the reasons for portable engines."""
    out = console()
    out.print(f"xentx {xentx.__version__}")
    out.print(f"Python {platform.python_version()} on {platform.platform()}")
    with quiet():
        backends = xentx.backends(load=True)
    table = Table("backend", "version", "engine")
    reasons: dict[str, list[str]] = {}
    for backend in backends:
        version = backend.version or f"not installed: pip install 'xentx[{backend.name}]'"
        table.add_row(backend.name, Text(version), backend.engine or "-")
        if backend.reason is not None:
            what = f"{backend.name} is {backend.engine or 'not available'}"
            reasons.setdefault(backend.reason, []).append(what)
    out.print(table)
    for reason, names in reasons.items():
        out.print(Text(f"{', '.join(names)}: {reason}"), soft_wrap=True)


def natives() -> None:
    """Print the records, and broken plugins."""
    out = console()
    table = Table()
    table.add_column("id", overflow="fold")
    table.add_column("version")
    table.add_column("targets", overflow="fold")
    table.add_column("options", overflow="fold")
    table.add_column("reductions", overflow="fold")
    for native in (*records.natives(), *records.natives("binary_cross_entropy")):
        missing = native.missing()
        table.add_row(
            Text(native.id),
            Text(missing or native.version() or "-"),
            ", ".join(native.targets),
            Text(", ".join(native.options.values()) or "-"),
            Text(", ".join(native.reductions.values())),
        )
    out.print(table)
    for broken in records.plugins()[1]:
        out.print(Text(f"entry point {broken.name}: {broken.reason}", style="red"))


def regimes() -> None:
    """Print the regimes."""
    table = Table("regime", "logits")
    for regime in REGIMES.values():
        table.add_row(regime.name, Text(regime.description))
    console().print(table)
