"""The call of another framework that computes the same as a given call.

A plan states the arguments of the other loss and the operations before and after it. `code` writes
it as code, and `run` computes it, from the same fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xentx.compare._floats import FORMATS
from xentx.compare.case import Answer, Case, prepare
from xentx.diff import _spelling
from xentx.diff._call import Call, Symbol, Value, known
from xentx.diff._comparison import Verification
from xentx.diff._meaning import Factor, Meaning, divisor, meaning
from xentx.natives import Native
from xentx.natives.vocabulary import Target

Array = np.ndarray[Any, Any]

ROWS, CLASSES = 64, 10
EQUAL_ULP = 16.0
"""Difference up to which two calls count as equal, in float32 ULP of the largest entry."""

_WEIGHT, _SAMPLE_WEIGHT = "weight", "sample_weight"

_LAST_OF_TWO = (-1, 1)
"""The class axis of logits of shape (rows, C), which code is written for."""


class NoPlanError(ValueError):
    """There is no such call, for the reason of the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to compute the meaning of a call with another loss.

    Parameters
    ----------
    native
        The loss that is called.
    kind
        The kind of the user's target.
    wanted
        The meaning to compute.
    options
        Options of the loss, by xentx's names.
    reduction
        Reduction of the loss, by xentx's name.
    encoded
        Whether the code around the loss converts the target to a distribution.
    smoothed
        Whether this code smooths the distribution, and applies class weights.
    scale
        Factors by which this code multiplies the losses of the rows.
    divides
        Whether this code divides the sum.
    """

    native: Native
    kind: Target
    wanted: Meaning
    options: Mapping[str, Value]
    reduction: str
    encoded: bool
    smoothed: bool
    scale: tuple[Factor, ...]
    divides: bool


def plan(call: Call, native: Native, kind: Target) -> Plan:
    """Find out how a native can compute what a call does.

    Raises
    ------
    NoPlanError
        If it cannot.
    """
    wanted = meaning(call, kind)
    if wanted.reduction == "mean" and wanted.divisor is None:
        msg = f"what the mean of {call.native.id} divides by is not known"
        raise NoPlanError(msg)
    if call.options.get("axis", -1) not in _LAST_OF_TWO:
        msg = (
            f"the classes are on axis {call.options['axis']}; the suggested code is for logits of "
            "shape (rows, C)"
        )
        raise NoPlanError(msg)
    if kind == "probabilities" and wanted.ignored is not None:
        msg = "ignore_index is for class indices only"
        raise NoPlanError(msg)
    native = _of_logits(native)
    if kind == "probabilities" and "probabilities" not in native.targets:
        msg = f"{native.id} takes class indices only"
        raise NoPlanError(msg)
    return _direct(call, wanted, native, kind) or _by_hand(call, wanted, native, kind)


def _of_logits(native: Native) -> Native:
    """Find the loss of the same name that takes logits, and is no bad example."""
    if native.takes == "probabilities" or native.caveat:
        for other in known():
            if (
                other.name == native.name
                and other.takes == "logits"
                and not other.caveat
                and other.compiled == native.compiled
            ):
                return other
    if native.caveat:
        msg = f"{native.id} is a bad example: {native.caveat}"
        raise NoPlanError(msg)
    if not _spelling.is_spelled(native):
        msg = f"how {native.id} is written is not known"
        raise NoPlanError(msg)
    return native


def _asked(call: Call, native: Native) -> dict[str, Value]:
    """Options of a call that another native must support."""
    # A native without an axis option has the classes of (rows, C) on the right axis.
    return {
        name: value
        for name, value in call.options.items()
        if name != "axis" or name in native.options
    }


def _direct(call: Call, wanted: Meaning, native: Native, kind: Target) -> Plan | None:
    """Plan a call that has all options. At most the sum is divided afterwards."""
    options = _asked(call, native)
    if any(name not in native.options for name in options):
        return None
    encoded = kind not in native.targets
    plan_ = Plan(
        native=native,
        kind=kind,
        wanted=wanted,
        options=options,
        reduction=wanted.reduction,
        encoded=encoded,
        smoothed=False,
        scale=(),
        divides=False,
    )
    if wanted.reduction != "mean":
        return plan_ if wanted.reduction in native.reductions else None
    for reduction in native.reductions:
        other = _recast(call, native, reduction)
        if reduction not in ("none", "sum") and divisor(other, kind) == wanted.divisor:
            return replace(plan_, reduction=reduction)
    # If the native smooths, the mass of a row is not available for the division.
    if "sum" not in native.reductions or "mass" in (wanted.divisor or ()):
        return None
    return replace(plan_, reduction="sum", divides=True)


def _recast(call: Call, native: Native, reduction: str) -> Call:
    """Return the same call of another native, with a reduction by xentx's name."""
    return Call(text=call.text, native=native, options=call.options, reduction=reduction)


def _by_hand(call: Call, wanted: Meaning, native: Native, kind: Target) -> Plan:
    """Plan a call for the loss of each row, and code for the options that the native lacks."""
    if "none" not in native.reductions:
        lacking = ", ".join(n for n in _asked(call, native) if n not in native.options)
        what = f"no option for {lacking}" if lacking else "no such reduction"
        msg = f"{native.id} has {what}, and does not return the losses of the rows"
        raise NoPlanError(msg)
    weighs = wanted.weight is not None
    smooths = wanted.smoothing > 0.0
    options = {name: value for name, value in _asked(call, native).items() if name == "axis"}
    scale: list[Factor] = []
    mixes = smooths and (weighs or "label_smoothing" not in native.options)
    mixes = mixes or (weighs and kind == "probabilities")
    if mixes and "probabilities" not in native.targets:
        msg = f"{native.id} takes class indices only, and has no label smoothing"
        raise NoPlanError(msg)
    if mixes:
        # The distribution is normalised and its mass is multiplied afterwards, because TensorFlow's
        # gradient is wrong for targets that do not sum to 1.
        scale.extend(["mass"] if weighs else [])
    else:
        if smooths:
            options["label_smoothing"] = wanted.smoothing
        scale.extend(["class weight"] if weighs else [])
    if wanted.sample_weight is not None:
        scale.append("sample weight")
    if wanted.ignored is not None:
        scale.append("kept")
    return Plan(
        native=native,
        kind=kind,
        wanted=wanted,
        options=options,
        reduction="none",
        encoded=mixes or kind not in native.targets,
        smoothed=mixes,
        scale=tuple(scale),
        divides=wanted.reduction == "mean",
    )


# Writing a plan as code.


def code(plan: Plan) -> str:
    """Write a plan, for logits of shape (rows, C)."""
    wanted, idiom = plan.wanted, _spelling.IDIOMS[plan.native.framework]
    lines: list[str] = []
    t = "target"
    by_hand = "kept" in plan.scale
    if by_hand or (plan.divides and wanted.ignored is not None):
        lines.append(f"kept = target != {wanted.ignored}")
    if by_hand:
        lines.append(f"safe = {idiom.where.format(c='kept', a='target', b='0')}")
        t = "safe"
    distribution = t
    if plan.encoded and plan.kind == "indices":
        lines.append(f"y = {idiom.one_hot.format(t=t)}")
        distribution = "y"
    if plan.smoothed:
        lines.append(f"q = {_mixture(wanted, distribution)}")
        distribution = "q"
        if "mass" in plan.scale:
            lines.append(f"mass = {idiom.last_sum.format(x='q')}")
            distribution = "q / mass[:, None]"
    options = {name: str(value) for name, value in plan.options.items()}
    call = _spelling.call(plan.native, "logits", distribution, options, plan.reduction)
    factors = [_factor(factor, plan, t) for factor in plan.scale if factor != "kept"]
    rows = " * ".join([*factors, call])
    if by_hand:
        rows = idiom.where.format(c="kept", a=rows, b="0.0")
    if plan.reduction == "none" and wanted.reduction != "none":
        lines.append(f"rows = {rows}")
        rows = idiom.sum.format(x="rows")
    if plan.divides:
        rows = f"{rows} / {_divisor(plan, t)}"
    return "\n".join([*lines, f"loss = {rows}"])


def _mixture(wanted: Meaning, y: str) -> str:
    mixed = y
    if wanted.smoothing:
        mixed = f"(1 - {wanted.smoothing!r}) * {y} + {wanted.smoothing!r} / C"
    if wanted.weight is None:
        return mixed
    return f"{wanted.weight} * ({mixed})" if wanted.smoothing else f"{wanted.weight} * {mixed}"


def _factor(factor: Factor, plan: Plan, t: str) -> str:
    idiom, wanted = _spelling.IDIOMS[plan.native.framework], plan.wanted
    return {
        "class weight": idiom.take.format(w=wanted.weight, t=t),
        "sample weight": str(wanted.sample_weight),
        "kept": idiom.number.format(x="kept"),
        "nonzero": idiom.number.format(x=f"({wanted.sample_weight} != 0)"),
        "mass": "mass",
    }[factor]


def _divisor(plan: Plan, t: str) -> str:
    idiom = _spelling.IDIOMS[plan.native.framework]
    factors = plan.wanted.divisor or frozenset()
    if not factors:
        return "len(logits)"
    order: tuple[Factor, ...] = ("class weight", "sample weight", "nonzero", "mass", "kept")
    return idiom.sum.format(
        x=" * ".join(_factor(factor, plan, t) for factor in order if factor in factors)
    )


# Running it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Random arguments of both calls, in float32."""

    logits: Array
    target: Array
    kind: Target
    weight: Array
    sample_weight: Array

    @classmethod
    def random(cls, kind: Target, ignored: int | None) -> "Data":
        """Draw them. Some rows are ignored, and one has sample weight 0."""
        rng = np.random.default_rng(0)
        logits = rng.normal(0.0, 3.0, (ROWS, CLASSES)).astype(np.float32)
        target = rng.integers(0, CLASSES, ROWS)
        if ignored is not None:
            target[::7] = ignored
        soft = rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
        sample_weight = rng.uniform(0.5, 2.0, ROWS).astype(np.float32)
        sample_weight[0] = 0.0
        return cls(
            logits=logits.astype(np.float64),
            target=soft.astype(np.float64) if kind == "probabilities" else target,
            kind=kind,
            weight=rng.uniform(0.5, 2.0, CLASSES).astype(np.float32),
            sample_weight=sample_weight,
        )

    def values(self, options: Mapping[str, Value]) -> dict[str, Any]:
        """Replace symbols by arrays."""
        arrays = {_WEIGHT: self.weight, _SAMPLE_WEIGHT: self.sample_weight}
        return {
            name: arrays[name] if isinstance(value, Symbol) else value
            for name, value in options.items()
        }

    def case(self, options: Mapping[str, Value], reduction: str) -> Case:
        """Make the case of a native that takes this target."""
        return Case(
            logits=self.logits,
            target=self.target,
            target_dtype="float32" if self.kind == "probabilities" else "int64",
            kind=self.kind,
            options=self.values(options),
            reduction=reduction,
        )


def evaluate(call: Call, data: Data) -> tuple[Array, Array | None]:
    """Run a call; return loss and gradient."""
    answer = prepare(call.native, data.case(call.options, call.reduction))[1]()
    return answer.loss, answer.gradient


def run(plan: Plan, data: Data) -> tuple[Array, Array | None]:
    """Run a plan; return loss and gradient.

    The loss runs in its framework. The operations around it are computed here in float64, so that
    they add no rounding error that matters.
    """
    case = data.case(plan.options, plan.reduction)
    kept = np.ones(ROWS, bool)
    indices = data.target
    if plan.wanted.ignored is not None:
        kept = indices != plan.wanted.ignored
    if "kept" in plan.scale:
        indices = np.where(kept, indices, 0)
        case = replace(case, target=indices)
    mass = np.ones(ROWS)
    if plan.encoded:
        y = data.target if plan.kind == "probabilities" else np.eye(CLASSES)[indices]
        if plan.smoothed:
            s = plan.wanted.smoothing
            y = (1.0 - s) * y + s / CLASSES
        if "mass" in plan.scale:
            y = data.weight.astype(np.float64) * y
            mass = y.sum(axis=1)
            y = y / mass[:, None]
        y = FORMATS["float32"].round(y).astype(np.float64)
        case = replace(case, target=y, target_dtype="float32", kind="probabilities")
    answer = prepare(plan.native, case)[1]()
    amounts: dict[Factor, Array] = {
        "sample weight": data.sample_weight.astype(np.float64),
        "kept": kept.astype(np.float64),
        "nonzero": (data.sample_weight != 0.0).astype(np.float64),
        "mass": mass,
    }
    if plan.kind == "indices":
        safe = np.where(kept, indices, 0)
        amounts["class weight"] = data.weight.astype(np.float64)[safe]
    return _finished(plan, answer, amounts)


def _finished(
    plan: Plan, answer: Answer, amounts: Mapping[Factor, Array]
) -> tuple[Array, Array | None]:
    loss, gradient = answer.loss, answer.gradient
    if plan.reduction == "none":
        factor = np.ones(ROWS)
        for name in plan.scale:
            factor = factor * amounts[name]
        loss = loss * factor
        gradient = None if gradient is None else gradient * factor[:, None]
        if plan.wanted.reduction != "none":
            loss = loss.sum()
    if plan.divides:
        by = np.ones(ROWS)
        for name in plan.wanted.divisor or frozenset[Factor]():
            by = by * amounts[name]
        loss = loss / by.sum()
        gradient = None if gradient is None else gradient / by.sum()
    return np.asarray(loss), gradient


def verify(call: Call, plan: Plan) -> Verification:
    """Run a call and its plan on the same random data."""
    data = Data.random(plan.kind, plan.wanted.ignored)
    loss, gradient = evaluate(call, data)
    other_loss, other_gradient = run(plan, data)
    loss_ulp = _difference(loss, other_loss)
    gradient_ulp = (
        None
        if gradient is None or other_gradient is None
        else _difference(gradient, other_gradient)
    )
    return Verification(
        equal=max(loss_ulp, gradient_ulp or 0.0) <= EQUAL_ULP,
        loss_ulp=loss_ulp,
        gradient_ulp=gradient_ulp,
        rows=ROWS,
        classes=CLASSES,
    )


def _difference(a: Array, b: Array) -> float:
    if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
        return np.inf
    largest = np.asarray(np.abs(a).max())
    return float(np.abs(a - b).max() / FORMATS["float32"].ulp(largest))
