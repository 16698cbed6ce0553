"""Checks of every public function on random problems from Hypothesis, against true values.

The test suite checks a few problems (`test_any_problem`). ``python -m xentx.testing.fuzz`` checks
random problems for a given time. Magnitudes and gaps are drawn from the whole range of each dtype.
Hypothesis draws and shrinks the shapes and options; the arrays are drawn from a seed.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np

import xentx
from xentx._registry import require
from xentx.testing import _oracle as oracle
from xentx.testing._problems import REDUCTIONS
from xentx.testing._routes import Route

Array = np.ndarray
Draw = Callable[[st.SearchStrategy[Any]], Any]

# Units of the precision of the compute dtype, relative to the size of the terms that are summed.
VALUE_UNITS, GRADIENT_UNITS, LINEAR_UNITS = 8, 16, 16
# With a larger gap than this, the smallest probability is 0.
LEADS = {"float16": 200, "bfloat16": 200, "float32": 200, "float64": 800}
# Small numbers, and numbers larger than the kernel's vectors and tiles, so that all loops of the
# kernel have a remainder.
CLASSES = st.one_of(st.integers(1, 9), st.integers(10, 80), st.sampled_from([257, 1000, 4100]))
# True means that an array is drawn. Half of the problems have at most one option.
VALUES = {
    "weight": st.just(True),
    "sample_weight": st.just(True),
    "label_smoothing": st.sampled_from([0.1, 0.5, 1.0]),
    "z_loss": st.sampled_from([1e-4, 0.25]),
    "logit_softcap": st.sampled_from([0.5, 5.0, 30.0]),
    "temperature": st.sampled_from([0.25, 0.7, 3.0]),
    "ignore_index": st.sampled_from([-100, 0, None]),
}
OPTIONS = st.one_of(
    st.just({}),
    *(st.fixed_dictionaries({name: value}) for name, value in VALUES.items()),
    *[st.fixed_dictionaries({}, optional=VALUES)] * 7,
)
MAGNITUDES = ("normal", "leads", "wide", "tiny", "ties", "shifted", "far")


@dataclass(frozen=True)
class Dense:
    """Logits, a target and the options of a dense problem."""

    logits: Array
    target: Array
    options: dict[str, Any]
    rng: np.random.Generator

    @property
    def soft(self) -> bool:
        return self.target.dtype.kind not in "iu"

    @property
    def units(self) -> tuple[float, float]:
        """Units allowed for a value and a gradient: an engine may add the classes one by one."""
        more = self.logits.shape[self.options["axis"]] / 4
        return VALUE_UNITS + more, GRADIENT_UNITS + more


def _draw_logits(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, magnitude: str
) -> Array:
    """Draw logits. The last axis is the class axis."""
    x = rng.normal(0, 3, shape)
    limits = oracle.limits(dtype)
    if magnitude == "leads":
        x = rng.normal(size=shape) * rng.choice([0.0, 1.0])
        leader = rng.integers(0, shape[-1], (*shape[:-1], 1))
        lead = rng.uniform(0, LEADS[dtype.name], (*shape[:-1], 1))
        np.put_along_axis(x, leader, x.max(-1, keepdims=True) + lead, -1)
    elif magnitude == "wide":
        x = rng.uniform(-LEADS[dtype.name], LEADS[dtype.name], shape)
    elif magnitude == "tiny":
        x = x * 2.0 ** rng.uniform(np.log2(float(limits.tiny)) - 2, 0)
    elif magnitude == "ties":
        x = np.round(x)
    elif magnitude == "shifted":
        x = x + rng.choice([-1, 1]) * 2.0 ** rng.uniform(0, np.log2(float(limits.max)) - 2)
    elif magnitude == "far":
        # Sums over rows and classes stay in the range of the dtype of the computation.
        largest = min(np.log2(float(limits.max)), 1008 if dtype == np.float64 else 112) - 2
        x = rng.choice([-1, 1], shape) * 2.0 ** rng.uniform(-5, largest, shape)
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def _draw_options(draw: Draw, *, soft: bool, reductions: bool = True) -> dict[str, Any]:
    """Draw options. For options that are arrays, the value is True."""
    names = ["weight", "label_smoothing", "z_loss", "logit_softcap", "temperature"]
    names += ["ignore_index"] * (not soft)
    names += ["sample_weight"] * reductions
    options = draw(OPTIONS)
    options = {name: options[name] for name in names if name in options}
    if reductions:
        options["reduction"] = draw(st.sampled_from(REDUCTIONS))
        if options["reduction"] == "mean" and draw(st.integers(0, 3)) == 3:
            options["normalizer"] = draw(st.sampled_from([1, 7, 0.3]))
    return options


def _fill(
    rng: np.random.Generator,
    options: dict[str, Any],
    rows: tuple[int, ...],
    classes: int,
    wide: Any,
) -> dict[str, Any]:
    """Replace True by arrays."""
    options = dict(options)
    for name, shape in (("weight", (classes,)), ("sample_weight", rows)):
        if options.get(name):
            zeros = rng.random(shape) < 0.1
            options[name] = np.where(zeros, 0, rng.uniform(0.1, 2, shape)).astype(wide)
    return options


def _draw_target(
    draw: Draw,
    rng: np.random.Generator,
    rows: tuple[int, ...],
    classes: int,
    dtype: np.dtype,
    options: dict[str, Any],
    *,
    soft: bool,
) -> Array:
    """Draw class probabilities, or class indices of which some are ignored.

    The class axis is last.
    """
    if soft:
        target = rng.gamma(0.5, size=(*rows, classes))
        target[rng.random(target.shape) < 0.2] = 0
        return target.astype(dtype)
    target = rng.integers(0, classes, rows)
    ignored = options.get("ignore_index", -100)
    if ignored is not None and draw(st.booleans()):
        target = np.where(rng.random(rows) < 0.3, ignored, target)
    return target.astype(draw(st.sampled_from([np.int32, np.int64])))


def draw_dense(
    draw: Draw, route: Route, *, soft: bool | None = None, reductions: bool = True
) -> Dense:
    """Draw a dense problem with a dtype of the route."""
    dtype = oracle.DTYPES[draw(st.sampled_from(route.dtypes))]
    rows = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    classes = draw(CLASSES)
    axis = draw(st.integers(-len(rows) - 1, len(rows)))
    magnitude = draw(st.sampled_from(MAGNITUDES))
    masked = draw(st.integers(0, 4)) == 4
    damaged = draw(st.integers(0, 7)) == 7
    soft = draw(st.booleans()) if soft is None else soft
    options = _draw_options(draw, soft=soft, reductions=reductions)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if magnitude == "far":
        # z_loss would overflow. With a softcap, the rounding error is larger than the value.
        options.pop("z_loss", None)
    logits = _draw_logits(rng, (*rows, classes), dtype, magnitude)
    wide = np.float64 if dtype == np.float64 else np.float32
    options = _fill(rng, options, rows, classes, wide)
    target = _draw_target(draw, rng, rows, classes, dtype, options, soft=soft)
    if masked:
        logits[rng.random(logits.shape) < 0.3] = -np.inf
    if damaged:
        bad = np.nan if "logit_softcap" in options else rng.choice([np.nan, np.inf])
        logits[rng.random(rows) < 0.3, rng.integers(0, classes)] = bad
    logits = np.moveaxis(logits, -1, axis)
    if soft:
        target = np.moveaxis(target, -1, axis)
    return Dense(logits, target, {**options, "axis": axis}, rng)


def _cotangent(problem: Dense, shape: tuple[int, ...], dtype: Any = None) -> Array:
    return problem.rng.normal(size=shape).astype(dtype or problem.logits.dtype)


def _rows(problem: Dense) -> tuple[int, ...]:
    return tuple(np.delete(problem.logits.shape, problem.options["axis"]))


def check_loss(
    route: Route,
    function: Callable[..., Any],
    arrays: tuple[Array, ...],
    options: dict[str, Any],
    cotangent: Array,
    truth: oracle.Truth,
    units: tuple[float, float],
) -> None:
    """Compare the value of a loss, and its gradient for a cotangent, with the true values."""
    value, gradient = route.pull(function, *arrays, cotangent=cotangent, **options)
    assert value.dtype == gradient.dtype == arrays[0].dtype
    oracle.assert_within(value, truth.value, truth.value_scale, units[0])
    oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, units[1])


def cross_entropy(route: Route, draw: Draw) -> None:
    """Check the value and the gradient of `xentx.cross_entropy`."""
    problem = draw_dense(draw, route)
    options = problem.options
    scalars = ("label_smoothing", "z_loss", "logit_softcap", "temperature")
    if draw(st.integers(0, 9)) == 9:
        wide = np.float64 if problem.logits.dtype == np.float64 else np.float32
        given = {k: np.asarray(v, wide) if k in scalars else v for k, v in options.items()}
    else:
        given = dict(options)
    if route.has_float64 and draw(st.integers(0, 9)) == 9:
        given["precision"] = "exact"
    shape = _rows(problem) if options["reduction"] == "none" else ()
    cotangent = _cotangent(problem, shape)
    truth = oracle.cross_entropy(
        problem.logits,
        problem.target,
        cotangent=cotangent,
        **{**options, **{k: given[k] for k in scalars if k in given}},
    )
    arrays = problem.logits, problem.target
    check_loss(route, xentx.cross_entropy, arrays, given, cotangent, truth, problem.units)


def log_softmax(route: Route, draw: Draw) -> None:
    """Check the value and the gradient of `xentx.log_softmax`."""
    problem = draw_dense(draw, route, reductions=False)
    axis = problem.options["axis"]
    cotangent = _cotangent(problem, problem.logits.shape)
    cotangent[problem.rng.random(cotangent.shape) < 0.3] = 0
    x, c = (np.moveaxis(a.astype(oracle.LONG), axis, -1) for a in (problem.logits, cotangent))
    losses, p, complement = oracle.log_softmax(x)
    size = np.abs(c).sum(-1, keepdims=True)
    total = c.sum(-1, keepdims=True)
    gradient = np.where(p > 0.5, c * complement - p * (total - c), c - p * total)
    scale = np.where(p > 0.5, np.abs(c) * complement + p * (size - np.abs(c)), np.abs(c) + p * size)
    whole = (np.moveaxis(a, -1, axis) for a in (-losses, gradient, losses, scale))
    truth, options = oracle.Truth(*whole), {"axis": axis}
    arrays = (problem.logits,)
    check_loss(route, xentx.log_softmax, arrays, options, cotangent, truth, problem.units)


def nll_loss(route: Route, draw: Draw) -> None:
    """Check the value and the gradient of `xentx.nll_loss`."""
    problem = draw_dense(draw, route)
    takes = ("axis", "weight", "ignore_index", "reduction")
    options = {name: problem.options[name] for name in takes if name in problem.options}
    moved = np.moveaxis(problem.logits.astype(oracle.LONG), options["axis"], -1)
    log_probs = np.moveaxis(-oracle.log_softmax(moved)[0], -1, options["axis"])
    log_probs = log_probs.astype(problem.logits.dtype)
    shape = _rows(problem) if options["reduction"] == "none" else ()
    cotangent = _cotangent(problem, shape)
    truth = oracle.cross_entropy(
        log_probs, problem.target, cotangent=cotangent, log_probs=True, **options
    )
    arrays = log_probs, problem.target
    check_loss(route, xentx.nll_loss, arrays, options, cotangent, truth, problem.units)


def binary_cross_entropy(route: Route, draw: Draw) -> None:
    """Check the value and the gradient of `xentx.binary_cross_entropy`."""
    dtype = oracle.DTYPES[draw(st.sampled_from(route.dtypes))]
    shape = tuple(draw(st.lists(st.integers(1, 20), max_size=2)))
    magnitude = draw(st.sampled_from(["normal", "wide", "tiny", "ties"]))
    weights = draw(st.sets(st.sampled_from(["weight", "pos_weight"])))
    smoothing = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
    reduction = draw(st.sampled_from(REDUCTIONS))
    hard = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = _draw_logits(rng, (*shape, 1), dtype, magnitude)[..., 0]
    wide = np.float64 if dtype == np.float64 else np.float32
    target = rng.integers(0, 2, shape).astype(np.int32) if hard else rng.random(shape).astype(wide)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    for name in sorted(weights):
        options[name] = rng.uniform(0.1, 2, shape[-1:]).astype(wide)
    cotangent = np.asarray(rng.normal(size=shape if reduction == "none" else ())).astype(dtype)
    truth = oracle.binary_cross_entropy(logits, target, cotangent=cotangent, **options)
    units, arrays = (VALUE_UNITS, GRADIENT_UNITS), (logits, target)
    check_loss(route, xentx.binary_cross_entropy, arrays, options, cotangent, truth, units)


def kl_divergence(route: Route, draw: Draw) -> None:
    """Check the value of `xentx.kl_divergence` and its gradients with respect to both arguments."""
    dtype = oracle.DTYPES[draw(st.sampled_from(route.dtypes))]
    rows = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    classes = draw(CLASSES)
    axis = draw(st.integers(-len(rows) - 1, len(rows)))
    magnitude = draw(st.sampled_from(["normal", "leads", "wide", "tiny", "ties", "shifted"]))
    distance = draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))
    masked, damaged = draw(st.sampled_from(["", "", "shared", "apart"])), draw(st.integers(0, 7))
    chosen = draw(st.sets(st.sampled_from(["sample_weight", "where"])))
    options: dict[str, Any] = {
        "axis": axis,
        "beta": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "temperature": draw(st.sampled_from([1.0, 1.0, 0.7, 3.0])),
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = _draw_logits(rng, (*rows, classes), dtype, magnitude)
    with np.errstate(over="ignore", invalid="ignore"):
        noise = distance * rng.normal(size=logits.shape)
        reference = (logits + noise.astype(dtype)).astype(dtype)
    if masked:
        logits[rng.random(logits.shape) < 0.3] = -np.inf
    if masked == "shared":
        reference[logits == -np.inf] = -np.inf
    if damaged == 7:
        at = rng.random(rows) < 0.3, rng.integers(0, classes)
        (logits if rng.random() < 0.5 else reference)[at] = rng.choice([np.nan, np.inf])
    wide = np.float64 if dtype == np.float64 else np.float32
    if "sample_weight" in chosen:
        options["sample_weight"] = rng.uniform(0.1, 2, rows).astype(wide)
    if "where" in chosen:
        options["where"] = rng.random(rows) < 0.7
    logits, reference = (np.moveaxis(a, -1, axis) for a in (logits, reference))
    shape = rows if options["reduction"] == "none" else ()
    cotangent = np.asarray(rng.normal(size=shape)).astype(dtype)
    truths = oracle.kl_divergence(logits, reference, cotangent=cotangent, **options)
    arrays, more = (logits, reference), classes / 4
    units = VALUE_UNITS + more, GRADIENT_UNITS + more
    function = xentx.kl_divergence
    check_loss(route, function, arrays, options, cotangent, truths[0], units)
    finite = np.isfinite(truths[1].value).all()
    if route.has_autodiff and finite:  # the gradient of an infinite divergence is not defined
        _, gradient = route.pull(function, *arrays, cotangent=cotangent, wrt=1, **options)
        oracle.assert_within(gradient, truths[1].gradient, truths[1].gradient_scale, units[1])


def stacked(stats: Any) -> Any:
    """Stack the fields of a named tuple into one array with the dtype of the first field."""
    first = stats[0]
    xp = require("a field", first).namespace(first)
    fields = (xp.expand_dims(xp.astype(field, first.dtype), axis=0) for field in stats)
    return xp.concat(list(fields))


def stats_of(logits: Any, target: Any, **options: Any) -> Any:
    """Stack the fields of `xentx.per_row`."""
    return stacked(xentx.per_row(logits, target, **options))


def linear_stats_of(hidden: Any, head: Any, target: Any, **options: Any) -> Any:
    """Stack the fields of `xentx.linear_per_row`."""
    return stacked(xentx.linear_per_row(hidden, head, target, **options))


@dataclass(frozen=True)
class RowTruth:
    """True values of the fields of `RowStats`, and their scales.

    `hits` is None if rounding may have created ties.
    """

    fields: tuple[Array, ...]
    scales: tuple[Array, ...]
    hits: tuple[Array, Array] | None


def row_truth(
    logits: Array,
    target: Array,
    *,
    axis: int = -1,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int | None = -100,
    blur: Any = 0,
    **options: Any,
) -> RowTruth:
    """Compute the true values of `xentx.per_row`.

    `blur` is the size of the errors of the logits.
    """
    loss = oracle.cross_entropy(
        logits,
        target,
        axis=axis,
        logit_softcap=logit_softcap,
        temperature=temperature,
        ignore_index=ignore_index,
        reduction="none",
        **options,
    )
    x = np.moveaxis(np.asarray(logits).astype(oracle.LONG), axis, -1)
    prediction, tied = x.argmax(-1), np.any(blur)  # the first NaN, if there is one
    if logit_softcap is not None:
        x = oracle.softcap(x, oracle.LONG(logit_softcap))[0]
    x = x / oracle.LONG(temperature)
    if logit_softcap is not None or temperature != 1:
        finite = np.where(np.isfinite(x), np.abs(x), 0)
        blur = blur + finite.max(-1)
    soft = target.dtype.kind not in "iu"
    y = (
        np.moveaxis(target.astype(oracle.LONG), axis, -1)
        if soft
        else oracle.one_hot(target, x.shape[-1])
    )
    losses, p, _ = oracle.log_softmax(x)
    lse = x.max(-1) + losses.min(-1)
    log_prob, entropy = oracle.times(y, losses).sum(-1), oracle.times(p, losses).sum(-1)
    kept = np.ones(lse.shape, bool)
    if not soft and ignore_index is not None:
        kept = target != ignore_index
    correct = prediction == (y.argmax(-1) if soft else target)
    damaged = np.isnan(lse)
    # The entropy lacks the terms of probabilities that are flushed to 0.
    compute = logits.dtype if logits.dtype == np.float64 else np.dtype(np.float32)
    flushed = np.where(np.isfinite(losses), losses, 0).sum(-1) * oracle.tiny(compute)
    mass = y.sum(-1)
    fields = (loss.value, lse, -log_prob, entropy)
    scales = (
        loss.value_scale,
        np.abs(x.max(-1)) + losses.min(-1) + blur,
        oracle.times(mass, np.asarray(blur)) + log_prob,
        entropy * (1 + blur) + blur * (1 - p.max(-1)) + flushed / oracle.epsilon(compute),
    )
    # The log-probability of a damaged row is NaN even if the target has no mass.
    filled = [np.where(damaged, oracle.LONG("nan"), field) for field in fields]
    return RowTruth(
        tuple(np.where(kept, field, 0) for field in filled),
        tuple(np.where(kept & ~damaged, scale, 0) for scale in scales),
        None if tied else (correct & kept, np.where(kept, prediction, 0)),
    )


def check_rows(found: Array, truth: RowTruth, units: int) -> None:
    """Compare all stacked fields of `RowStats` with the true values."""
    *fields, correct, prediction = found
    for field, true, scale in zip(fields, truth.fields, truth.scales, strict=True):
        oracle.assert_within(field, true, scale, units)
    if truth.hits is not None:
        # The dtype of the stack may round them.
        for got, true in zip((correct, prediction), truth.hits, strict=True):
            np.testing.assert_array_equal(got, true.astype(found.dtype))


def per_row(route: Route, draw: Draw) -> None:
    """Check all fields of `xentx.per_row`."""
    problem = draw_dense(draw, route, reductions=False)
    found = route.value(stats_of, problem.logits, problem.target, **problem.options)
    truth = row_truth(problem.logits, problem.target, **problem.options)
    check_rows(found, truth, problem.units[0])


def split_loss(
    logits: Any,
    target: Any,
    *,
    cuts: tuple[int, ...],
    order: int,
    weight: Any = None,
    z_loss: float = 0.0,
    **options: Any,
) -> Any:
    """Compute the loss of each row from blocks of the classes, combined in the given order."""
    classes = logits.shape[-1]
    soft = len(target.shape) == len(logits.shape)
    edges = [0, *cuts, classes]
    states = [
        xentx.partials(
            logits[:, a:b],
            target[:, a:b] if soft else target,
            classes=classes,
            start=a,
            weight=None if weight is None else weight[a:b],
            **options,
        )
        for a, b in itertools.pairwise(edges)
    ]
    while len(states) > 1:
        i = order % (len(states) - 1)
        a, b = states.pop(i + 1), states.pop(i)
        states.insert(i, xentx.combine(a, b))
    return xentx.finish(states[0], z_loss=z_loss)


def partials(route: Route, draw: Draw) -> None:
    """Check `xentx.partials`, `combine` and `finish` for random splits of the classes."""
    problem = draw_dense(draw, route, reductions=False)
    axis = problem.options["axis"]
    logits, target = (
        np.ascontiguousarray(np.moveaxis(a, axis, -1)).reshape(-1, problem.logits.shape[axis])
        if a.ndim == problem.logits.ndim
        else a.reshape(-1)
        for a in (problem.logits, problem.target)
    )
    options = {name: value for name, value in problem.options.items() if name != "axis"}
    classes = logits.shape[1]
    cuts = draw(st.sets(st.integers(1, classes - 1), max_size=4)) if classes > 1 else ()
    truth = oracle.cross_entropy(logits, target, reduction="none", **options)
    found = route.value(
        split_loss,
        logits,
        target,
        cuts=tuple(sorted(cuts)),
        order=draw(st.integers(0, 3)),
        **options,
    )
    # Differences of the blocks' maxima are rounded to the dtype of the state.
    finite = np.where(np.isfinite(logits), logits, 0).astype(oracle.LONG)
    size = 1 + np.abs(finite).max(-1)
    narrow = found.dtype == np.float64 and logits.dtype != np.float64
    if narrow:
        with np.errstate(over="ignore"):
            found, size = found.astype(np.float32), 1
    oracle.assert_within(found, truth.value, truth.value_scale * size, problem.units[0])


@dataclass(frozen=True)
class Linear:
    """Hidden, head and target of a problem for the linear losses, and its options."""

    arrays: tuple[Array, Array, Array]
    options: dict[str, Any]
    rng: np.random.Generator


def _true_logits(arrays: tuple[Array, ...], bias: Array | None) -> tuple[Array, Array]:
    """Compute the logits, and for each row the size of the terms that are summed."""
    hidden, head = (a.astype(oracle.LONG) for a in arrays[:2])
    b = np.zeros(len(head), oracle.LONG) if bias is None else bias.astype(oracle.LONG)
    size = np.matmul(np.abs(hidden), np.abs(head.T)) + np.abs(b)
    return np.matmul(hidden, head.T) + b, size.max(-1, initial=0)


def draw_linear(draw: Draw, dtypes: Sequence[str], *, reductions: bool = True) -> Linear:
    """Draw a problem for the linear losses, with one of the dtypes."""
    dtype = oracle.DTYPES[draw(st.sampled_from(dtypes))]
    rows = (draw(st.integers(1, 9)),)
    features = draw(st.integers(1, 5))
    classes = draw(st.one_of(st.integers(1, 9), st.integers(10, 80)))
    soft = draw(st.booleans())
    lead = draw(st.sampled_from([1.0, 1.0, 0.01, 8.0]))
    options = _draw_options(draw, soft=soft, reductions=reductions)
    biased = draw(st.booleans())
    chunk = draw(st.sampled_from(["auto", 1, 2, 4, 20]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hidden = rng.normal(0, lead, (*rows, features)).astype(dtype)
    head = rng.normal(0, lead, (classes, features)).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    options = _fill(rng, options, rows, classes, wide)
    target = _draw_target(draw, rng, rows, classes, np.dtype(wide), options, soft=soft)
    if biased:
        options["bias"] = rng.normal(size=classes).astype(dtype)
    return Linear((hidden, head, target), {**options, "chunk": chunk}, rng)


def linear_truth(
    arrays: tuple[Array, ...],
    cotangent: Array,
    *,
    bias: Array | None = None,
    chunk: Any = None,
    **options: Any,
) -> list[tuple[Array, Array]]:
    """Value and gradients with respect to hidden, head and bias, each with its scale."""
    logits, blur = _true_logits(arrays, bias)
    hidden, head = (a.astype(oracle.LONG) for a in arrays[:2])
    dense = oracle.cross_entropy(logits, arrays[2], cotangent=cotangent, **options)
    # The effect of an error of the logits on the loss and on its gradient.
    slope = dense.gradient_scale.sum(-1) * blur
    seed = np.maximum(np.abs(cotangent.astype(oracle.LONG)), oracle.LONG("1e-30"))
    spread = slope / seed if options["reduction"] == "none" else slope.sum() / seed
    size = (dense.gradient_scale * (1 + 2 * blur[..., None])).reshape(-1, len(head))
    gradient = dense.gradient.reshape(size.shape)
    rows = hidden.reshape(-1, hidden.shape[-1])
    return [
        (dense.value, dense.value_scale + 2 * spread),
        ((gradient @ head).reshape(hidden.shape), (size @ np.abs(head)).reshape(hidden.shape)),
        (gradient.T @ rows, size.T @ np.abs(rows)),
        (gradient.sum(0), size.sum(0)),
    ]


def check_linear(
    route: Route, arrays: tuple[Array, ...], options: dict[str, Any], cotangent: Array
) -> None:
    """Compare the value and all gradients of `xentx.linear_cross_entropy` with the true values."""
    truth, *gradients = linear_truth(arrays, cotangent, **options)
    wrt = (0, 1, "bias") if "bias" in options else (0, 1)
    value, found = route.pull(
        xentx.linear_cross_entropy, *arrays, cotangent=cotangent, wrt=wrt, **options
    )
    assert value.dtype == cotangent.dtype
    oracle.assert_within(value, *truth, LINEAR_UNITS)
    arguments = [*arrays[:2], *([options["bias"]] if "bias" in options else [])]
    # On NumPy's route, `found` also has the gradient with respect to a soft target.
    for argument, gradient, (true, scale) in zip(arguments, found, gradients, strict=False):
        assert gradient.dtype == argument.dtype
        oracle.assert_within(gradient, true, scale, LINEAR_UNITS)


def linear_cross_entropy(route: Route, draw: Draw) -> None:
    """Check the value and the gradients of `xentx.linear_cross_entropy`."""
    problem = draw_linear(draw, route.dtypes)
    wide = np.float64 if problem.arrays[0].dtype == np.float64 else np.float32
    shape = problem.arrays[0].shape[:1] if problem.options["reduction"] == "none" else ()
    cotangent = np.asarray(problem.rng.normal(size=shape), wide)
    check_linear(route, problem.arrays, problem.options, cotangent)


def linear_kl_divergence(route: Route, draw: Draw) -> None:
    """Check the value of `xentx.linear_kl_divergence` and its gradients, also for the reference."""
    dtype = oracle.DTYPES[draw(st.sampled_from(route.dtypes))]
    rows = (draw(st.integers(1, 9)),)
    classes = draw(st.one_of(st.integers(1, 9), st.integers(10, 80)))
    biased, both = draw(st.booleans()), draw(st.booleans())
    chosen = draw(st.sets(st.sampled_from(["sample_weight", "where"])))
    lead = draw(st.sampled_from([1.0, 1.0, 0.1, 4.0]))
    options: dict[str, Any] = {
        "beta": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "temperature": draw(st.sampled_from([1.0, 1.0, 0.7, 3.0])),
    }
    chunk = draw(st.sampled_from(["auto", 1, 2, 4, 20]))
    layers = [(draw(st.integers(1, 5)), f"{prefix}bias") for prefix in ("", "reference_")]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays: list[Array] = []
    logits, blurs, biases = [], [], {}
    for features, name in layers:
        factors = [rng.normal(0, lead, (n, features)).astype(dtype) for n in (*rows, classes)]
        bias = rng.normal(size=classes).astype(dtype) if biased else None
        if bias is not None:
            biases[name] = bias
        formed, blur = _true_logits((factors[0], factors[1]), bias)
        arrays += factors
        logits.append(formed)
        blurs.append(blur)
    wide = np.float64 if dtype == np.float64 else np.float32
    if "sample_weight" in chosen:
        options["sample_weight"] = rng.uniform(0.1, 2, rows).astype(wide)
    if "where" in chosen:
        options["where"] = rng.random(rows) < 0.7
    shape = rows if options["reduction"] == "none" else ()
    cotangent = np.asarray(rng.normal(size=shape)).astype(wide)
    truths = oracle.kl_divergence(*logits, cotangent=cotangent, **options)

    blur = blurs[0] + blurs[1]
    slope = truths[0].gradient_scale.sum(-1) * blur
    seed = np.maximum(np.abs(cotangent.astype(oracle.LONG)), oracle.LONG("1e-30"))
    spread = slope / seed if options["reduction"] == "none" else slope.sum() / seed
    expected: dict[Any, tuple[Array, Array]] = {}
    for i, truth in enumerate(truths):
        hidden, head = (a.astype(oracle.LONG) for a in arrays[2 * i : 2 * i + 2])
        size, gradient = truth.gradient_scale * (1 + 2 * blur[:, None]), truth.gradient
        expected[2 * i] = gradient @ head, size @ np.abs(head)
        expected[2 * i + 1] = gradient.T @ hidden, size.T @ np.abs(hidden)
        expected[layers[i][1]] = gradient.sum(0), size.sum(0)
    wrt = (0, 1, *list(biases)[:1])
    if both and route.has_autodiff:
        wrt = (0, 1, 2, 3, *biases)
    function = xentx.linear_kl_divergence
    options |= {**biases, "chunk": chunk}
    value, found = route.pull(function, *arrays, cotangent=cotangent, wrt=wrt, **options)
    assert value.dtype == wide
    oracle.assert_within(value, truths[0].value, truths[0].value_scale + 2 * spread, LINEAR_UNITS)
    for key, gradient in zip(wrt, found, strict=False):
        assert gradient.dtype == dtype
        oracle.assert_within(gradient, *expected[key], LINEAR_UNITS)


def linear_per_row(route: Route, draw: Draw) -> None:
    """Check all fields of `xentx.linear_per_row`."""
    problem = draw_linear(draw, route.dtypes, reductions=False)
    logits, blur = _true_logits(problem.arrays, problem.options.get("bias"))
    options = {k: v for k, v in problem.options.items() if k not in ("bias", "chunk")}
    truth = row_truth(logits, problem.arrays[2], blur=blur, **options)
    loss_scale = truth.scales[0]
    mass = oracle.cross_entropy(logits, problem.arrays[2], reduction="none", **options)
    scales = (loss_scale + 2 * blur * mass.gradient_scale.sum(-1), *truth.scales[1:])
    found = route.value(linear_stats_of, *problem.arrays, **problem.options)
    check_rows(found, RowTruth(truth.fields, scales, None), LINEAR_UNITS)


CHECKS: dict[str, Callable[[Route, Draw], None]] = {
    check.__name__: check
    for check in (
        cross_entropy,
        binary_cross_entropy,
        kl_divergence,
        log_softmax,
        nll_loss,
        per_row,
        partials,
        linear_cross_entropy,
        linear_kl_divergence,
        linear_per_row,
    )
}
