"""Build the explanation: the prose of each step, its numbers, and notes about these numbers.

A step is a function of the measured rows. Its notes are chosen by the numbers, and all numbers in
them are computed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import xentx
from xentx.compare._evaluate import describe
from xentx.compare._floats import FORMATS, distance
from xentx.compare.case import Case
from xentx.explain import _article
from xentx.explain._explanation import Explanation, Figure, LeftOut, Step
from xentx.explain._measure import Measured, Truth, lost_gap, measure, overflow
from xentx.explain._prose import PROSE
from xentx.explain._rows import WRITTEN, Found, Rows, giving, listed, short, tuples
from xentx.explain._ways import WAYS

Array = np.ndarray[Any, Any]

_IGNORED = -100
_XENTX = "xentx.cross_entropy"


def explain(
    logits: Sequence[Sequence[float]],
    target: Sequence[int],
    *,
    dtype: str = "float32",
    frameworks: Sequence[str] = (),
) -> Explanation:
    """Explain the cross-entropy of some rows, step by step.

    Parameters
    ----------
    logits
        Rows of logits, all of the same length.
    target
        The right class of each row.
    dtype
        "float16", "bfloat16", "float32" or "float64". Everything is computed in this dtype.
    frameworks
        Some of "numpy", "torch", "jax" and "tensorflow". The default is all that can be imported.
        A framework that is named must be importable.

    Returns
    -------
    Explanation
        The steps with their texts and numbers.

    Raises
    ------
    ValueError
        If the rows differ in length, the targets in number, or a name is unknown.
    IndexError
        If a target is out of range.
    ImportError
        If a framework that is named cannot be imported.

    Examples
    --------
    >>> explanation = explain([[1.0, 2.0, 0.5]], [1], frameworks=["numpy"])
    >>> [step.key for step in explanation.steps][:4]
    ['logits', 'naive softmax', 'shift', 'log-sum-exp']
    >>> explanation.corrections[1].text
    'log-softmax of class 1 is -0.464368784: rounded to 2 decimals this is -0.46, not -0.47.'
    """
    given, classes = _checked(logits, target)
    if dtype not in FORMATS:
        msg = f"dtype: got {dtype!r}; expected one of {', '.join(FORMATS)}"
        raise ValueError(msg)
    rounded = FORMATS[dtype].round(given).astype(np.float64)
    case = Case(logits=rounded, dtype=dtype, target=classes)
    measured, left_out = _measured(case, frameworks)
    rows = Rows(given, rounded, classes, FORMATS[dtype], measured, Truth(rounded, classes))
    ideal = Truth(given, classes)
    return Explanation(
        title="Cross-entropy, step by step",
        logits=tuples(rounded),
        target=tuple(int(t) for t in classes),
        dtype=dtype,
        versions=tuple((m.ways.framework, m.version) for m in measured),
        steps=tuple(_step(key, rows) for key in PROSE if key != "mean" or len(classes) > 1),
        corrections=_article.corrections(given, classes, ideal.log_probs, ideal.losses),
        left_out=left_out,
    )


def _checked(logits: Sequence[Sequence[float]], target: Sequence[int]) -> tuple[Array, Array]:
    lengths = [len(row) for row in logits]
    if not lengths or len(set(lengths)) > 1:
        msg = f"logits: got rows of {lengths} classes; expected rows of one length"
        raise ValueError(msg)
    if len(target) != len(lengths):
        msg = f"target: got {len(target)} for {len(lengths)} rows; expected one for each row"
        raise ValueError(msg)
    if _IGNORED in target:
        msg = (
            f"target: got {_IGNORED} at position {list(target).index(_IGNORED)}, which marks a row "
            "as ignored: its loss and its gradient are 0; expected the index of a class"
        )
        raise ValueError(msg)
    given, classes = np.asarray(logits, np.float64), np.asarray(target, np.int64)
    xentx.cross_entropy(given, classes)  # raises what is out of range, in xentx's words
    return given, classes


def _measured(
    case: Case, frameworks: Sequence[str]
) -> tuple[tuple[Measured, ...], tuple[LeftOut, ...]]:
    unknown = [name for name in frameworks if name not in WAYS]
    if unknown:
        msg = f"framework: got {unknown[0]!r}; expected some of {', '.join(WAYS)}"
        raise ValueError(msg)
    found: list[Measured] = []
    left_out: list[LeftOut] = []
    for name in dict.fromkeys(frameworks or WAYS):
        try:
            found.append(measure(WAYS[name], case))
        except Exception as error:  # a broken installation fails in any way
            if name in frameworks:
                msg = f"framework: {name} cannot be imported: {describe(error)}"
                raise ImportError(msg) from error
            left_out.append(LeftOut(name=name, reason=describe(error)))
    left_out.extend(item for one in found for item in one.left_out)
    return tuple(found), tuple(left_out)


def _two_steps(one: Measured) -> str:
    return one.ways.two_steps


def _one_step(one: Measured) -> str:
    return one.ways.one_step or ""


def _loss(way: str) -> Callable[[Measured], Array | None]:
    def values(one: Measured) -> Array | None:
        answer = getattr(one, way)
        return None if answer is None else answer.loss

    return values


def _gradient(way: str) -> Callable[[Measured], Array | None]:
    def values(one: Measured) -> Array | None:
        answer = getattr(one, way)
        return None if answer is None else answer.gradient

    return values


def _step(key: str, rows: Rows) -> Step:
    prose, found = PROSE[key], _STEPS[key](rows)
    form = rows.form
    return Step(
        key=key,
        title=prose.title,
        tex=prose.tex,
        plain=prose.plain,
        paragraphs=prose.paragraphs(
            dtype=form.name,
            precision=form.precision,
            digits=math.floor(form.precision * math.log10(2)),
            rows=len(rows.target),
        ),
        figures=found.figures,
        notes=found.notes,
        code=prose.source(),
        snippets=found.snippets,
    )


def _logits(rows: Rows) -> Found:
    form = rows.form
    notes: list[str] = []
    changed = rows.given != rows.logits
    changed &= ~np.isnan(rows.given)
    pairs = zip(rows.given[changed], rows.logits[changed], strict=True)
    for value, rounded in dict.fromkeys(pairs):
        notes.append(
            f"{short(value)} is not representable in {form.name}. It is rounded to "
            f"{float(rounded)!r}, and the true values are those for the rounded number."
        )
    for name, i in rows.each():
        x, t = rows.logits[i], rows.target[i]
        if np.isnan(x).any() or (x == np.inf).any() or (x == -np.inf).all():
            notes.append(
                f"In {name} a logit is NaN or +inf, or all logits are -inf. Such a row has no "
                "probabilities: its loss and gradient are NaN. Other rows are not affected."
            )
        elif (x == -np.inf).any():
            where = listed([f"class {k}" for k in np.flatnonzero(x == -np.inf)])
            notes.append(
                f"In {name} the logit of {where} is -inf, as masks set it. Its probability is "
                "exactly 0, and its log-probability is -inf. "
                + (
                    "It is the target: the loss is +inf, and the gradient is finite."
                    if x[t] == -np.inf
                    else "It is not the target, so it adds nothing to the loss."
                )
            )
    return Found(
        figures=(
            *rows.figures("x", "given", lambda _: rows.logits),
            Figure(
                quantity="t",
                way="given",
                frameworks=(),
                rows=tuples(rows.target),
                text=tuple(str(t) for t in rows.target),
                ulp=None,
            ),
        ),
        notes=tuple(notes),
    )


def _naive(rows: Rows) -> Found:
    dtype, limit = rows.dtype, overflow(rows.dtype)
    notes: list[str] = []
    for name, i in rows.each():
        x, t = rows.logits[i], rows.target[i]
        finite = x[np.isfinite(x)]
        p = {float(one.written["naive"][i, t]) for one in rows.measured}
        loss = float(rows.truth.losses[i])
        if not finite.size or np.isnan(loss):
            continue
        totals = [float(one.written["total"][i, 0]) for one in rows.measured]
        if finite.max() > limit:
            notes.append(
                f"The textbook formula fails for {name}: exp overflows {dtype} above "
                f"{short(limit)}, so e^{short(finite.max())} is inf, and inf / inf is nan. The "
                f"true loss is {short(loss)}."
            )
        elif np.isinf(totals).any():
            notes.append(
                f"The textbook formula fails for {name}: each e^x is finite, but their sum "
                f"overflows {dtype}, and every probability is 0. The true loss is {short(loss)}."
            )
        elif not all(totals):
            notes.append(
                f"The textbook formula fails for {name}: every e^x is below the smallest positive "
                f"{dtype} and becomes 0, and 0 / 0 is nan. The true loss is {short(loss)}."
            )
        elif 0.0 in p and np.isfinite(loss):
            notes.append(
                f"The textbook formula fails for {name}: the target's probability rounds to 0, and "
                f"-log 0 is inf. The true loss is {short(loss)}."
            )
        elif 1.0 in p and loss >= rows.form.tiny:
            notes.append(
                f"The textbook formula fails for {name}: the target's probability rounds to 1, and "
                f"-log 1 is 0. The true loss is {short(loss)}."
            )
        else:
            notes.append(
                f"The textbook formula works for {name}: the largest logit is "
                f"{short(finite.max())}, and exp overflows {dtype} above {short(limit)}."
            )
    return Found(
        figures=(
            *rows.written("e^x", "exp"),
            *rows.written("sum(e^x)", "total"),
            *rows.written("p", "naive", rows.truth.probs),
            rows.true("p", rows.truth.probs),
            *rows.written("-log(p[t])", "naive loss", rows.truth.losses),
            rows.true("-log(p[t])", rows.truth.losses),
        ),
        notes=tuple(notes),
    )


def _shift(rows: Rows) -> Found:
    return Found(
        figures=(
            *rows.written("m", "max"),
            *rows.written("x - m", "shifted"),
            *rows.written("e^(x - m)", "shifted exp"),
            *rows.written("sum(e^(x - m))", "shifted total"),
        ),
    )


def _log_sum_exp(rows: Rows) -> Found:
    form = rows.form
    notes: list[str] = []
    for name, i in rows.each():
        rest = float(rows.truth.rest[i, 0])
        if 0.0 < rest < form.eps / 2:
            notes.append(
                f"In {name} the terms other than the largest sum to S' = {short(rest)}. In "
                f"{form.name} 1 + S' rounds to 1, because the spacing of the numbers above 1 is "
                f"{short(form.eps)}. So log(1 + S') is 0. log1p(S') does not compute 1 + S' and "
                "keeps full precision. With two classes, log(1 + S') is 0 if the logits differ by "
                f"{short(lost_gap(form.name))} = {form.precision} ln 2 or more."
            )
    return Found(
        figures=(
            *rows.written("log(sum(e^x))", "naive lse", rows.truth.lse),
            *rows.written("m + log(sum(e^(x - m)))", "lse", rows.truth.lse),
            *rows.written("m + log1p(S')", "lse log1p", rows.truth.lse),
            rows.true("lse", rows.truth.lse),
            *rows.written("S'", "rest", rows.truth.rest),
            rows.true("S'", rows.truth.rest),
            *rows.written("log(sum(e^(x - m)))", "log", np.log1p(rows.truth.rest)),
            *rows.written("log1p(S')", "log1p", np.log1p(rows.truth.rest)),
            rows.true("log1p(S')", np.log1p(rows.truth.rest)),
        ),
        notes=tuple(notes),
    )


def _log_softmax(rows: Rows) -> Found:
    true = rows.truth.log_probs
    return Found(
        figures=(
            *rows.written("(x - m) - log(sum(e^(x - m)))", "log_softmax", true),
            *rows.figures("log_p", lambda one: one.ways.shown, lambda one: one.log_softmax, true),
            *rows.figures("log_p", "xentx.log_softmax", lambda one: one.xentx_log_softmax, true),
            rows.true("log_p", true),
        ),
    )


def _nll(rows: Rows) -> Found:
    true = rows.truth.losses
    return Found(
        figures=(
            *rows.written("-log_p[t]", "nll", true),
            *rows.figures("NLL(log_p)", _two_steps, _loss("two_steps"), true),
            *rows.figures("NLL(log_p)", "xentx.nll_loss", lambda one: one.xentx_two_steps, true),
            rows.true("loss", true),
        ),
    )


def _zeros(rows: Rows, figures: Sequence[Figure]) -> Iterator[str]:
    for name, i in rows.each():
        true = float(rows.truth.losses[i])
        zero = [figure.way for figure in figures if figure.frameworks and figure.rows[i][0] == 0.0]
        if zero and abs(true) >= rows.form.tiny:
            lse = float(rows.truth.lse[i, 0])
            yield (
                f"For {name} {giving(zero)} 0. The true loss is {short(true)}, which {rows.dtype} "
                f"can represent. The digits are lost when lse = {lse!r} is rounded before x[t] is "
                "subtracted, or when 1 + S' is rounded before its logarithm is computed."
            )


def _cross_entropy(rows: Rows) -> Found:
    true = rows.truth.losses
    two = [
        *rows.figures("two steps", _two_steps, _loss("two_steps"), true),
        *rows.figures(
            "two steps", "xentx.nll_loss(xentx.log_softmax)", lambda one: one.xentx_two_steps, true
        ),
    ]
    one = [
        *rows.figures("one step", _one_step, _loss("one_step"), true),
        *rows.figures("one step", _XENTX, _loss("xentx"), true),
    ]
    return Found(
        figures=(*two, *one, rows.true("loss", true)),
        notes=tuple(_zeros(rows, (*two, *one))),
        snippets=tuple(m.ways.snippet(rows.dtype) for m in rows.measured),
    )


def _row_sums(gradient: Array | None) -> Array | None:
    if gradient is None:
        return None
    return np.asarray([math.fsum(row) if np.isfinite(row).all() else row.sum() for row in gradient])


def _gradient_step(rows: Rows) -> Found:
    true = rows.truth.gradient
    ways: tuple[tuple[str | Callable[[Measured], str], Callable[[Measured], Array | None]], ...] = (
        (WRITTEN, lambda one: one.written["gradient"]),
        (_two_steps, _gradient("two_steps")),
        (_one_step, _gradient("one_step")),
        (_XENTX, _gradient("xentx")),
    )
    gradients = [f for way, values in ways for f in rows.figures("gradient", way, values, true)]
    notes: list[str] = []
    for name, i in rows.each():
        t = rows.target[i]
        lost = [
            figure.way
            for figure in gradients
            if figure.rows[i][t] == 0.0 and abs(true[i, t]) >= rows.form.tiny
        ]
        if lost:
            notes.append(
                f"In {name} the gradient of the target's logit is {short(true[i, t])}. "
                f"{giving(lost)} 0, because p[t] is rounded to 1. The other entries are not 0, so "
                "the row does not sum to 0: a training step lowers the logits of the wrong classes "
                "and does not raise that of the right class."
            )
    return Found(
        figures=(
            *gradients,
            rows.true("gradient", true),
            *(figure for way, values in ways for figure in _sums(rows, way, values)),
        ),
        notes=tuple(notes),
    )


def _sums(
    rows: Rows,
    way: str | Callable[[Measured], str],
    values: Callable[[Measured], Array | None],
) -> list[Figure]:
    return rows.figures("sum of the row", way, lambda one: _row_sums(values(one)))


def _reduced(
    reduction: str, way: str | Callable[[Measured], str]
) -> Callable[[Measured], Array | None]:
    def values(one: Measured) -> Array | None:
        return one.reduced.get((way if isinstance(way, str) else way(one), reduction))

    return values


def _mean(rows: Rows) -> Found:
    losses = rows.truth.losses
    totals = {"sum": losses.sum(), "mean": losses.mean()}
    figures: list[Figure] = []
    for name, total in totals.items():
        for way in (_one_step, _XENTX):
            figures.extend(rows.figures(name, way, _reduced(name, way), np.asarray([total])))
        figures.append(rows.true(name, np.asarray([total])))
    return Found(
        figures=tuple(figures),
    )


def _choice(rows: Rows) -> Found:
    losses = (
        ("-log(softmax(x))[t]", lambda one: one.written["naive loss"][:, 0]),
        ("two steps, native", _loss("two_steps")),
        ("one step, native", _loss("one_step")),
        ("two steps, xentx", lambda one: one.xentx_two_steps),
        ("one step, xentx", _loss("xentx")),
    )
    true = rows.truth.losses
    notes: list[str] = []
    for name, values in losses:
        found = [array for one in rows.measured if (array := values(one)) is not None]
        if found:
            worst = max(float(distance(array, true, rows.form).max()) for array in found)
            verdict = (
                "fails: it is not finite where the true loss is finite, or the reverse"
                if math.isinf(worst)
                else f"error of at most {worst:.3g} ULP"
            )
            notes.append(f"{name}: {verdict}.")
    return Found(
        figures=(),
        notes=tuple(notes),
    )


_STEPS: dict[str, Callable[[Rows], Found]] = {
    "logits": _logits,
    "naive softmax": _naive,
    "shift": _shift,
    "log-sum-exp": _log_sum_exp,
    "log-softmax": _log_softmax,
    "nll": _nll,
    "cross-entropy": _cross_entropy,
    "gradient": _gradient_step,
    "mean": _mean,
    "choice": _choice,
}
