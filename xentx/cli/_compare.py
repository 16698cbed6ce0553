"""``xentx compare``: makes a `Plan` from the options, shows progress, and prints the report."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from xentx.cli import _output
from xentx.cli._console import console
from xentx.cli._progress import progress
from xentx.cli._quiet import quiet
from xentx.compare import (
    BINARY_CORNERS,
    CORNERS,
    DEFAULT_REGIMES,
    REGIMES,
    Plan,
    Regime,
    Report,
    _json,
    user_regime,
)
from xentx.compare._apart import compare_apart, keras_backends
from xentx.compare._run import FailOn
from xentx.compare.files import DataError, load
from xentx.compare.words import count
from xentx.natives import Native
from xentx.natives.vocabulary import LossName

_CORNERS = {"cross_entropy": CORNERS, "binary_cross_entropy": BINARY_CORNERS}

# The default for a page: all kinds of logits.
_PAGE_REGIMES = (
    *("worked-example", "digits", "gap", "normal-10", "normal-1000", "normal-50257"),
    *("confident-10", "near-tied-10", "offset-10", "scaled-10"),
)


def run(
    *,
    frameworks: Sequence[str],
    losses: Sequence[str],
    loss: LossName,
    regimes: Sequence[str] | None,
    dtypes: Sequence[str],
    logits: Path | None,
    target: Path | None,
    axis: int | None,
    ignore_index: int | None,
    corners: bool,
    seed: int,
    timed: bool | None,
    jobs: int | None,
    every: bool,
    as_json: bool,
    html: Path | None,
    fail_on: FailOn,
) -> int:
    """Run the command and return its exit status."""
    write_html = None if html is None else _html_writer(html, loss)
    if html is not None:
        corners = True
        if regimes is None and logits is None:
            regimes = _PAGE_REGIMES
    timed = html is None if timed is None else timed
    chosen = _regimes(regimes, default=logits is None)
    of_logits = {"--target": target, "--axis": axis, "--ignore-index": ignore_index}
    alone = [option for option, value in of_logits.items() if value is not None]
    if alone and logits is None:
        msg = f"{alone[0]} goes with --logits"
        raise typer.BadParameter(msg)
    if logits is not None:
        ignored = -100 if ignore_index is None else ignore_index
        try:
            values, classes, dtype = load(logits, target, axis=axis, ignore_index=ignored)
        except DataError as error:
            raise typer.BadParameter(str(error)) from error
        chosen = (*chosen, user_regime(logits.name, values, classes, ignore_index=ignored))
        dtypes = dtypes or [dtype]
    plan = Plan(
        frameworks=tuple(frameworks),
        losses=tuple(losses),
        loss=loss,
        regimes=chosen,
        dtypes=tuple(dtypes) or ("float32",),
        corners=tuple(_CORNERS[loss].values()) if corners else (),
        seed=seed,
        timed=timed,
        keras_backends=keras_backends(),
        fail_on=fail_on,
    )
    natives = _chosen(plan)
    if not as_json:
        _announce(plan, natives)
    with quiet() as stderr, progress(stderr) as step:
        report = compare_apart(plan, step, jobs=jobs or _jobs(timed=timed))
    if html is not None and write_html is not None:
        with _output.written("--html", html):
            write_html(report, html)
    if as_json:
        sys.stdout.write(_json.dumps(report) + "\n")
    elif html is not None:
        failed = f"{len(report.failures)} failed" if report.failures else "passed"
        sys.stdout.write(f"wrote {html}: {failed}\n")
    else:
        from xentx.compare import _table  # noqa: PLC0415 -- JSON needs no tables

        console().print(_table.render(report, every=every))
    return 0 if report.passed else 1


def _chosen(plan: Plan) -> tuple[Native, ...]:
    try:
        return plan.chosen()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _announce(plan: Plan, chosen: Sequence[Native]) -> None:
    """Print what will be compared, as the first output."""
    frameworks = ", ".join(dict.fromkeys(native.framework for native in chosen))
    kinds = ", ".join(regime.name for regime in plan.regimes) or "no kinds of logits"
    corners = f" and {count(len(plan.corners), 'corner case')}" if plan.corners else ""
    losses = count(len(chosen), "loss", "losses")
    text = f"Comparing {losses} of {frameworks} on {kinds}{corners} in {', '.join(plan.dtypes)}."
    console().print(text)
    sys.stdout.flush()


def _jobs(*, timed: bool) -> int:
    # Processes that run at the same time would slow down a timed loss.
    return 1 if timed else os.cpu_count() or 1


def _html_writer(path: Path, loss: LossName) -> Callable[[Report, Path], None]:
    """Import the renderer and check the path, before minutes of measuring."""
    if loss != "cross_entropy":
        msg = "--html goes with --loss cross_entropy"
        raise typer.BadParameter(msg)
    _output.check("--html", path)
    try:
        from xentx.compare.html import write_html  # noqa: PLC0415 -- only this option needs it
    except ImportError as error:
        msg = "--html needs jinja2 and plotly: pip install 'xentx[report]'"
        raise typer.BadParameter(msg) from error
    return write_html


def _regimes(names: Sequence[str] | None, *, default: bool) -> tuple[Regime, ...]:
    if names is None:
        names = DEFAULT_REGIMES if default else ()
    if "all" in names:
        names = tuple(REGIMES)
    unknown = [name for name in names if name not in REGIMES]
    if unknown:
        msg = f"regime: got {unknown[0]!r}; expected all or some of {', '.join(REGIMES)}"
        raise typer.BadParameter(msg)
    return tuple(REGIMES[name] for name in dict.fromkeys(names))
