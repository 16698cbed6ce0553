"""Run a comparison: every chosen loss on every chosen regime and corner case."""

import fnmatch
import importlib.util
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import xentx
from xentx.compare import _evaluate, truth
from xentx.compare._evaluate import Availability, Truth
from xentx.compare.corners import Corner
from xentx.compare.regimes import DEFAULT_REGIMES, REGIMES, Regime
from xentx.compare.report import (
    SCHEMA_VERSION,
    CornerReport,
    Library,
    Loss,
    Measurement,
    RegimeReport,
    Report,
)
from xentx.natives import Native, natives, xentx_records
from xentx.natives.vocabulary import LossName

Array = np.ndarray[Any, Any]
FailOn = Literal["none", "xentx", "any"]
Progress = Callable[[int, int, str], None]
"""Called with the number of steps done, the number of all steps, and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compare.

    Parameters
    ----------
    frameworks
        Names of frameworks. Empty for all.
    losses
        Patterns of native ids, with ``*`` and ``?``. Empty for all but the slow ones. The losses of
        xentx are always included.
    loss
        The function of xentx that the losses are compared with.
    regimes
        The kinds of logits on which accuracy is measured.
    dtypes
        The dtypes of the logits.
    corners
        The corner cases.
    seed
        Seed of the regimes' logits.
    timed
        Whether to measure times.
    keras_backends
        Backends of Keras on which its losses are measured. The losses of each backend have ids of
        their own, which begin with ``keras[jax]:``. A pattern that begins with ``keras:`` matches
        all of them. A process can only measure the backend of its Keras; `compare_apart` measures
        all. If empty, the backend of the process is used, with the ids of the records.
    fail_on
        What counts as a failure. "none": nothing. "xentx": a measurement of xentx that is not
        accurate, or a corner case in which it breaks its rule. "any": also a native that is neither
        accurate nor close on a regime, or raises. Bad examples never count.
    """

    frameworks: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    loss: LossName = "cross_entropy"
    regimes: tuple[Regime, ...] = tuple(REGIMES[name] for name in DEFAULT_REGIMES)
    dtypes: tuple[str, ...] = ("float32",)
    corners: tuple[Corner, ...] = ()
    seed: int = 0
    timed: bool = True
    keras_backends: tuple[str, ...] = ()
    fail_on: FailOn = "xentx"

    def chosen(self) -> tuple[Native, ...]:
        """Records of the losses to measure, those of xentx first.

        Raises
        ------
        ValueError
            If there is no such framework, or a pattern matches no loss.
        """
        known = (
            *xentx_records(self.loss),
            *(
                native.on_backend(backend) if backend else native
                for native in natives(self.loss)
                for backend in (native.framework == "keras" and self.keras_backends) or (None,)
            ),
        )
        names = sorted({native.framework for native in known})
        unknown = [name for name in self.frameworks if name not in names]
        if unknown:
            msg = f"framework: got {unknown[0]!r}; expected some of {', '.join(names)}"
            raise ValueError(msg)
        idle = [p for p in self.losses if not any(_matches(native, p) for native in known)]
        if idle:
            msg = f"native: got {idle[0]!r}; expected an id or a pattern of `xentx natives`"
            raise ValueError(msg)
        return tuple(
            native
            for native in known
            if (not self.frameworks or native.framework in self.frameworks)
            and (
                native.is_xentx
                or not self.losses
                or any(_matches(native, pattern) for pattern in self.losses)
            )
        )

    def skips(self, native: Native) -> str | None:
        """Return the reason why a chosen native is not measured, or None."""
        if native.slow and not self.losses:
            return "takes long to compile; --native with its id measures it"
        return None


def _matches(native: Native, pattern: str) -> bool:
    # Brackets in ids are not character classes.
    escaped = pattern.replace("[", "[[]")
    names = (native.id, re.sub(r"^(\w+)\[\w+\]:", r"\1:", native.id))
    return any(fnmatch.fnmatchcase(name, escaped) for name in names)


def compare(plan: Plan, progress: Progress = lambda *_: None) -> Report:
    """Compare losses with the true values and with xentx's rules.

    Parameters
    ----------
    plan
        What to compare.
    progress
        Called before each step.

    Returns
    -------
    Report
        The results.

    Raises
    ------
    ValueError
        If there is no such framework or loss.
    """
    return compare_some(plan, plan.chosen(), Availability(), progress)


def compare_some(
    plan: Plan, chosen: Sequence[Native], available: Availability, progress: Progress
) -> Report:
    """Compare some of a plan's losses."""
    steps = _Steps(
        len(chosen) * (len(plan.regimes) * len(plan.dtypes) + len(plan.corners)), progress
    )
    regimes = tuple(
        _regime(plan, chosen, available, regime, dtype, steps)
        for regime in plan.regimes
        for dtype in plan.dtypes
    )
    corners = tuple(_corner(plan, chosen, available, corner, steps) for corner in plan.corners)
    losses = tuple(_loss(native, available.problem(native)) for native in chosen)
    return assemble(plan, chosen, losses=losses, regimes=regimes, corners=corners)


def assemble(
    plan: Plan,
    chosen: Sequence[Native],
    *,
    losses: tuple[Loss, ...],
    regimes: tuple[RegimeReport, ...],
    corners: tuple[CornerReport, ...],
    crashes: tuple[str, ...] = (),
) -> Report:
    """Make a report of the results, and of crashes that count as failures."""
    failures = (*crashes, *_failures(plan.fail_on, chosen, regimes, corners))
    ran = [
        native.backend or _evaluate.keras_backend()
        for native, loss in zip(chosen, losses, strict=True)
        if native.framework == "keras" and loss.problem is None
    ]
    return Report(
        schema=SCHEMA_VERSION,
        xentx=xentx.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        truth_precision=truth.PRECISION,
        keras_backends=tuple(dict.fromkeys(filter(None, ran))),
        fail_on=plan.fail_on,
        passed=not failures,
        failures=failures,
        libraries=_libraries(chosen, losses),
        losses=losses,
        regimes=regimes,
        corners=corners,
    )


class _Steps:
    """Counts steps and reports the progress."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def next(self, what: str) -> None:
        self._progress(self._done, self._total, what)
        self._done += 1


def _regime(
    plan: Plan,
    chosen: Sequence[Native],
    available: Availability,
    regime: Regime,
    dtype: str,
    steps: _Steps,
) -> RegimeReport:
    problem = None
    if regime.needs is not None and importlib.util.find_spec(regime.needs) is None:
        problem = f"needs {regime.needs}: pip install 'xentx[cli]'"
    elif dtype == "float64" and np.finfo(np.float64).nmant + 1 >= truth.PRECISION:
        problem = "needs a longdouble wider than float64, which this platform lacks"
    true = None if problem else Truth.of(regime.case(dtype, plan.seed, plan.loss))
    losses = None if true is None else true.losses.true
    gradient = None if true is None else true.gradient.true

    def measured(native: Native) -> Measurement:
        steps.next(f"{regime.name} {dtype}: {native.id}")
        missing = available.problem(native)
        if missing is not None or true is None:
            return _evaluate.blank(native, "unavailable", missing or str(problem))
        skipped = plan.skips(native)
        if skipped is not None:
            return _evaluate.blank(native, "not applicable", skipped)
        return _evaluate.measure(native, true, timed=plan.timed)

    return RegimeReport(
        name=regime.name,
        description=regime.description,
        dtype=dtype,
        rows=0 if losses is None else len(losses),
        classes=0 if gradient is None else int(np.prod(gradient.shape[1:])),
        seed=plan.seed,
        loss_tolerance=_evaluate.LOSS_ULP[dtype],
        gradient_tolerance=_evaluate.GRADIENT_ULP[dtype],
        nan_rows=0 if losses is None else int(np.count_nonzero(np.isnan(losses))),
        truth=None if losses is None else float(losses.mean()),
        true_losses=None if gradient is None else _evaluate.few(losses, gradient.size),
        true_gradients=None if gradient is None else _evaluate.few(gradient, gradient.size),
        problem=problem,
        measurements=tuple(map(measured, chosen)),
    )


def _corner(
    plan: Plan,
    chosen: Sequence[Native],
    available: Availability,
    corner: Corner,
    steps: _Steps,
) -> CornerReport:
    results = []
    for native in chosen:
        steps.next(f"{corner.name}: {native.id}")
        missing = available.problem(native)
        skipped = plan.skips(native)
        if missing is not None:
            results.append(_evaluate.skip(native, "unavailable", missing))
        elif skipped is not None:
            results.append(_evaluate.skip(native, "not applicable", skipped))
        else:
            results.append(_evaluate.visit(native, corner))
    return _evaluate.corner_report(corner, tuple(results))


def _failures(
    fail_on: FailOn,
    chosen: Sequence[Native],
    regimes: Iterable[RegimeReport],
    corners: Iterable[CornerReport],
) -> Iterable[str]:
    held: dict[str, set[str]] = {
        native.id: {"wrong", "error"} | ({"close"} if native.is_xentx else set())
        for native in chosen
        if not native.caveat and (native.is_xentx or fail_on == "any") and fail_on != "none"
    }
    ours = {native.id for native in chosen if native.is_xentx and fail_on != "none"}
    for regime in regimes:
        for found in regime.measurements:
            if found.verdict in held.get(found.loss, ()):
                yield f"{regime.name} {regime.dtype}: {found.loss} is {found.verdict}"
    for corner in corners:
        for result in corner.results:
            if result.verdict == "deviates" and result.loss in ours:
                yield f"{corner.name}: {result.loss} deviates in {', '.join(result.differences)}"


def _loss(native: Native, problem: str | None) -> Loss:
    return Loss(
        id=native.id,
        name=native.name,
        framework=native.framework,
        library=native.needs[0].module,
        is_xentx=native.is_xentx,
        compiled=native.compiled,
        takes=native.takes,
        targets=native.targets,
        class_axis=native.class_axis,
        options=dict(native.options),
        reductions=dict(native.reductions),
        logits_dtypes=native.logits_dtypes,
        target_dtypes=native.target_dtypes,
        documentation=native.documentation,
        caveat=native.caveat,
        problem=problem,
    )


def _libraries(chosen: Sequence[Native], losses: Sequence[Loss]) -> tuple[Library, ...]:
    versions = {native.needs[0].module: native.version() for native in chosen}
    problems = {
        name: [loss.problem for loss in losses if loss.library == name] for name in versions
    }
    return tuple(
        Library(
            name=name,
            version=version,
            problem=problems[name][0] if None not in problems[name] else None,
        )
        for name, version in versions.items()
    )


def user_regime(name: str, logits: Array, target: Array, *, ignore_index: int = -100) -> Regime:
    """Make a regime of a user's own logits and targets.

    Parameters
    ----------
    name : str
        Its name in the report.
    logits : ndarray
        Logits in any shape, with the classes on the last axis.
    target : ndarray
        Class indices, or probabilities as floats in the shape of `logits`.
    ignore_index : int, default: -100
        Class index of the rows to leave out, because not every loss can ignore rows. The mean of
        the other rows equals the mean of losses that can.

    Returns
    -------
    Regime
        A regime with these logits. It does not use the seed.
    """
    rows: Array = logits.reshape(-1, logits.shape[-1])
    description = "your own logits and targets"
    if target.dtype.kind == "f":
        soft = target.reshape(rows.shape)
        return Regime(name, description, lambda _: (rows, soft))
    flat: Array = target.reshape(-1)
    kept = flat != ignore_index
    if not kept.all():
        ignored = len(kept) - np.count_nonzero(kept)
        description += f", without {ignored} of {len(kept)} rows, whose target is {ignore_index}"
        rows, flat = rows[kept], flat[kept]
    return Regime(name, description, lambda _: (rows, flat))
