"""Corner cases: what each loss is asked, and what xentx's rule says.

A table of data. The rules are those of the documentation; the numbers that they come to are
computed by `truth`, and where the rule is an error the corner names it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xentx.compare.case import Case
from xentx.compare.regimes import WORKED_EXAMPLE

Array = np.ndarray[Any, Any]
Group = Literal[
    "class indices",
    "infinities",
    "extremes",
    "soft targets",
    "weights",
    "shapes",
    "dtypes",
    "binary cross-entropy",
]

INF, NAN = math.inf, math.nan

RULES = {
    "range": "Concrete values: IndexError with the value, its position and the number of classes. "
    "Traced, where values can't be seen: that row's loss and gradient are NaN. Never wrapped, "
    "never clamped.",
    "ignore": "ignore_index is -100 by default, in every framework. An ignored row has loss +0 and "
    "gradient exactly 0, even where its logits are NaN or infinite.",
    "ignore soft": "ignore_index is for integer targets only; other than the default with a soft "
    "target: TypeError.",
    "empty": "An empty mean is NaN with a gradient of exactly 0; 'sum' gives 0.",
    "no classes": "No classes: ValueError.",
    "one class": "One class: loss +0.0, gradient 0.",
    "infinities": "-inf at a class with q = 0 contributes 0; with q > 0 the loss is +inf with a "
    "finite gradient. A row all -inf, or with +inf or NaN, is NaN, and that row only.",
    "smoothed infinity": "Smoothing over a class at -inf: +inf.",
    "formula": "Full relative precision in loss and gradient, for confident rows too.",
    "soft": "No check of the sum: the gradient is A p - q with A the sum of q.",
    "mean": "'mean' divides by the sum of w[t] over the rows not ignored, also with smoothing; for "
    "soft targets by the number of rows.",
    "sample weight": "'mean' divides by the sum of sample_weight * w[t] for class indices, or of "
    "sample_weight for soft targets, ignored rows left out; 'weighted_mean' by the sum of q.",
    "smoothing": "q_k = (1 - s) w_t [k = t] + (s / C) w_k; C is the number of classes, whichever "
    "axis holds them.",
    "smoothing range": "label_smoothing outside [0, 1] or NaN: ValueError.",
    "weight": "A class weight has length C and any real dtype. Wrong shape: ValueError.",
    "shapes": "Nothing is broadcast or squeezed: ValueError. 1-D logits with a 0-d target are "
    "fine; 0-d logits: ValueError.",
    "axis": "The last axis by default; logits of 3 or more dimensions need axis given: ValueError.",
    "target dtype": "Every integer dtype. bool, or float of index shape: TypeError. An integer "
    "array of the logits' shape: TypeError.",
    "logits dtype": "float16, bfloat16, float32, float64; int, bool and complex: TypeError.",
    "output dtype": "The output dtype is that of the logits, always.",
    "wide": "float16 and bfloat16 are computed in float32, accumulated wide and rounded once.",
    "binary formula": "l = p y log(1 + exp(-x)) + (1 - y) log(1 + exp(x)), with full relative "
    "precision in loss and gradient.",
    "binary infinities": "An infinite logit costs nothing with its own target, and is +inf with "
    "the other one. A NaN is NaN in its own place only.",
    "binary target": "Floats or integers in the shape of the logits, of any value. bool: "
    "TypeError. Nothing is broadcast or squeezed: ValueError.",
    "binary weight": "weight and pos_weight broadcast to the shape of the logits; 0 times infinity "
    "is 0. 'mean' divides by the number of logits.",
    "binary smoothing": "(1 - s) y + s / 2; s outside [0, 1] or NaN: ValueError.",
    "subnormal": "Below the smallest normal number a result may be flushed to 0.",
}
"""xentx's rules, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """A corner case.

    Parameters
    ----------
    name
        Short and unique.
    group
        What kind of corner it is.
    title
        What is asked, in words.
    case
        The arguments.
    rule
        A key of `RULES`.
    error
        Name of the exception that xentx's rule raises; None where the rule is a value.
    by_value
        Whether that error depends on values, so that under a compiler the rule is a value.
    exact_dtype
        Whether the dtype of the loss is part of the rule that is looked at.
    signed_zero
        Whether the sign of a zero is.
    """

    name: str
    group: Group
    title: str
    case: Case
    rule: str
    error: str | None = None
    by_value: bool = False
    exact_dtype: bool = False
    signed_zero: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            msg = f"{self.name}: got rule {self.rule!r}; expected one of {', '.join(RULES)}"
            raise ValueError(msg)


# Most cases have two rows of three classes. Compilers, and JAX without one, compile for each shape
# and dtype anew, which takes longer than all else here.
B = np.asarray(WORKED_EXAMPLE[0])
T = WORKED_EXAMPLE[1]
ONE_HOT = np.eye(3)[list(T)]
EXACT = np.asarray([[1.0, 2.0, 0.5], [0.25, 0.5, 2.0]])  # in every dtype
EXACT_SOFT = np.asarray([[0.25, 0.5, 0.25], [0.0, 0.25, 0.75]])
SOFT = np.asarray([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
W = np.asarray([1.0, 2.0, 3.0], np.float32)


def _case(
    logits: Any,
    target: Any,
    *,
    dtype: str = "float32",
    target_dtype: str | None = None,
    reduction: str = "none",
    kind: Literal["indices", "probabilities"] | None = None,
    encode: bool = True,
    configure: bool = False,
    **options: Any,
) -> Case:
    """Make a case; what isn't said about a target is that of its values."""
    values = np.asarray(target, None if np.size(target) else np.int64)
    floats = values.dtype.kind == "f"
    return Case(
        logits=np.asarray(logits, None if np.size(logits) else np.float64),
        dtype=dtype,
        target=values,
        target_dtype=target_dtype or (dtype if floats else "int64"),
        kind=kind or ("probabilities" if floats else "indices"),
        options=options,
        reduction=reduction,
        encode=encode,
        configure=configure,
    )


def _float32(*values: float) -> Array:
    return np.asarray(values, np.float32)


def _group(group: Group, *rows: tuple[str, str, Case, str, dict[str, Any]]) -> list[Corner]:
    return [
        Corner(name=name, group=group, title=title, case=case, rule=rule, **rest)
        for name, title, case, rule, rest in rows
    ]


_OUT_OF_RANGE: dict[str, Any] = {"error": "IndexError", "by_value": True}
_VALUE_ERROR: dict[str, Any] = {"error": "ValueError"}
_TYPE_ERROR: dict[str, Any] = {"error": "TypeError"}
_VALUES: dict[str, Any] = {}

_INDICES = _group(
    "class indices",
    ("target-too-high", "a target of C", _case(B, (3, 2)), "range", _OUT_OF_RANGE),
    ("target-minus-one", "a target of -1", _case(B, (-1, 2)), "range", _OUT_OF_RANGE),
    ("target-below-minus-c", "a target below -C", _case(B, (-4, 2)), "range", _OUT_OF_RANGE),
    ("target-minus-100", "a target of -100", _case(B, (-100, 2)), "ignore", _VALUES),
    (
        "target-minus-100-mean",
        "a target of -100, mean",
        _case(B, (-100, 2), reduction="mean"),
        "ignore",
        _VALUES,
    ),
    (
        "ignored-row-mean",
        "a row ignored by ignore_index=-100, mean",
        _case(B, (-100, 2), reduction="mean", ignore_index=-100),
        "ignore",
        _VALUES,
    ),
    (
        "ignored-class-mean",
        "a class ignored by ignore_index=1, mean",
        _case(B, T, reduction="mean", ignore_index=1),
        "ignore",
        _VALUES,
    ),
    (
        "ignored-nan-row",
        "NaN logits in a row ignored by ignore_index=-100",
        _case([[NAN, NAN, NAN], B[1]], (-100, 2), ignore_index=-100),
        "ignore",
        {"signed_zero": True},
    ),
    (
        "ignored-infinite-row",
        "a row all -inf, ignored by ignore_index=-100",
        _case([[-INF, -INF, -INF], B[1]], (-100, 2), ignore_index=-100),
        "ignore",
        {"signed_zero": True},
    ),
    (
        "nan-row-at-minus-100",
        "NaN logits in a row with target -100",
        _case([[NAN, NAN, NAN], B[1]], (-100, 2)),
        "ignore",
        {"signed_zero": True},
    ),
    (
        "ignored-2-to-24",
        "ignore_index=16,777,217 and a target of 16,777,216, which float32 can't tell apart",
        _case(B, (2**24, 2), ignore_index=2**24 + 1),
        "range",
        _OUT_OF_RANGE,
    ),
    (
        "all-ignored-mean",
        "all rows ignored by ignore_index=-100, mean",
        _case(B, (-100, -100), reduction="mean", ignore_index=-100),
        "empty",
        _VALUES,
    ),
    (
        "all-minus-100-mean",
        "all targets -100, mean",
        _case(B, (-100, -100), reduction="mean"),
        "empty",
        _VALUES,
    ),
    (
        "all-minus-100-sum",
        "all targets -100, sum",
        _case(B, (-100, -100), reduction="sum"),
        "empty",
        _VALUES,
    ),
    ("no-rows", "no rows", _case(np.empty((0, 3)), ()), "empty", _VALUES),
    (
        "no-rows-mean",
        "no rows, mean",
        _case(np.empty((0, 3)), (), reduction="mean"),
        "empty",
        _VALUES,
    ),
    ("no-rows-sum", "no rows, sum", _case(np.empty((0, 3)), (), reduction="sum"), "empty", _VALUES),
    (
        "one-class",
        "one class",
        _case([[1.5], [-2.0]], (0, 0)),
        "one class",
        {"signed_zero": True},
    ),
    ("no-classes", "no classes", _case(np.empty((2, 0)), (0, 0)), "no classes", _VALUE_ERROR),
    (
        "no-classes-no-rows",
        "no classes and no rows",
        _case(np.empty((0, 0)), ()),
        "no classes",
        _VALUE_ERROR,
    ),
)

_INFINITIES = _group(
    "infinities",
    (
        "minus-inf-elsewhere",
        "-inf at another class",
        _case([[1.0, 0.0, -INF], B[1]], (0, 2)),
        "infinities",
        _VALUES,
    ),
    (
        "minus-inf-at-target",
        "-inf at the target",
        _case([[1.0, 0.0, -INF], B[1]], (2, 2)),
        "infinities",
        _VALUES,
    ),
    (
        "minus-inf-everywhere",
        "a row all -inf",
        _case([[-INF, -INF, -INF], B[1]], T),
        "infinities",
        _VALUES,
    ),
    (
        "plus-inf-elsewhere",
        "+inf at another class",
        _case([[1.0, 0.0, INF], B[1]], T),
        "infinities",
        _VALUES,
    ),
    (
        "plus-inf-at-target",
        "+inf at the target",
        _case([[1.0, INF, 0.5], B[1]], T),
        "infinities",
        _VALUES,
    ),
    ("nan-logit", "a NaN logit", _case([[1.0, NAN, 0.5], B[1]], T), "infinities", _VALUES),
    (
        "soft-zero-at-minus-inf",
        "probability 0 at a class at -inf",
        _case([[1.0, 2.0, -INF], B[1]], [[0.25, 0.75, 0.0], SOFT[1]]),
        "infinities",
        _VALUES,
    ),
    (
        "soft-positive-at-minus-inf",
        "probability above 0 at a class at -inf",
        _case([[1.0, 2.0, -INF], B[1]], [[0.25, 0.5, 0.25], SOFT[1]]),
        "infinities",
        _VALUES,
    ),
    (
        "soft-minus-inf-everywhere",
        "probabilities with a row all -inf",
        _case([[-INF, -INF, -INF], B[1]], SOFT),
        "infinities",
        _VALUES,
    ),
    (
        "soft-nan-probability",
        "a NaN among the probabilities",
        _case(B, [[0.2, NAN, 0.3], [0.1, 0.1, 0.8]]),
        "infinities",
        _VALUES,
    ),
    (
        "weight-zero-at-minus-inf",
        "class weight 0 at a target at -inf",
        _case([[1.0, 0.0, -INF], B[1]], (2, 1), weight=_float32(1.0, 2.0, 0.0)),
        "infinities",
        _VALUES,
    ),
    (
        "smoothing-minus-inf",
        "smoothing with another class at -inf",
        _case([[1.0, 0.0, -INF], B[1]], (0, 2), label_smoothing=0.1),
        "smoothed infinity",
        _VALUES,
    ),
    (
        "smoothing-weight-zero-minus-inf",
        "smoothing with another class at -inf that has weight 0",
        _case(
            [[1.0, 0.0, -INF], B[1]], (0, 1), label_smoothing=0.1, weight=_float32(1.0, 2.0, 0.0)
        ),
        "infinities",
        _VALUES,
    ),
)

_EXTREMES = _group(
    "extremes",
    ("confident-15", "[15, 0] with target 0", _case([[15.0, 0.0]], (0,)), "formula", _VALUES),
    ("confident-20", "[20, 0] with target 0", _case([[20.0, 0.0]], (0,)), "formula", _VALUES),
    (
        "confident-8-bfloat16",
        "two rows of [8, 0, -1000] with target 0 in bfloat16",
        _case([[8.0, 0.0, -1000.0]] * 2, (0, 0), dtype="bfloat16"),
        "formula",
        _VALUES,
    ),
    (
        "confident-8-float16",
        "two rows of [8, 0, -1000] with target 0 in float16",
        _case([[8.0, 0.0, -1000.0]] * 2, (0, 0), dtype="float16"),
        "formula",
        _VALUES,
    ),
    ("wrong-20", "[0, 20] with target 0", _case([[0.0, 20.0]], (0,)), "formula", _VALUES),
    (
        "not-probabilities",
        "[2, 1, 1] with target 0, also where from_logits is forgotten",
        _case([[2.0, 1.0, 1.0], B[1]], (0, 2)),
        "formula",
        _VALUES,
    ),
    (
        "exp-overflows",
        "[1000, 0, 0] with target 0",
        _case([[1000.0, 0.0, 0.0], B[1]], (0, 2)),
        "formula",
        _VALUES,
    ),
    (
        "exp-underflows",
        "[-1000, -1000] with target 0",
        _case([[-1000.0, -1000.0]], (0,)),
        "formula",
        _VALUES,
    ),
    ("200-to-0", "[200, 0] with target 1", _case([[200.0, 0.0]], (1,)), "formula", _VALUES),
    ("1e4-to-0", "[1e4, 0] with target 0", _case([[1e4, 0.0]], (0,)), "formula", _VALUES),
    ("1e30-to-0", "[1e30, 0] with target 1", _case([[1e30, 0.0]], (1,)), "formula", _VALUES),
    (
        "opposite-3e38-right",
        "[3e38, -3e38] with target 0",
        _case([[3e38, -3e38]], (0,)),
        "formula",
        _VALUES,
    ),
    (
        "opposite-3e38-wrong",
        "[3e38, -3e38] with target 1: the loss overflows",
        _case([[3e38, -3e38]], (1,)),
        "formula",
        _VALUES,
    ),
    (
        "equal-3e38",
        "[3e38, 3e38] with target 0",
        _case([[3e38, 3e38]], (0,)),
        "formula",
        _VALUES,
    ),
    (
        "equal-minus-1e30",
        "[-1e30, -1e30] with target 0",
        _case([[-1e30, -1e30]], (0,)),
        "formula",
        _VALUES,
    ),
    (
        "offset-1e4",
        "the worked example's first row plus 10,000",
        _case([[10001.0, 10002.0, 10000.5], B[1]], (1, 2)),
        "formula",
        _VALUES,
    ),
    (
        "subnormal-gradient",
        "[0, -95] with target 0: the other class's gradient is subnormal",
        _case([[0.0, -95.0]], (0,)),
        "subnormal",
        _VALUES,
    ),
    (
        "float16-zeros-65536",
        "65,536 zeros in float16",
        _case(np.zeros((1, 65536)), (0,), dtype="float16"),
        "wide",
        _VALUES,
    ),
    (
        "float16-mean-overflow",
        "the mean of two rows of loss 40,000 in float16, whose sum overflows",
        _case(
            [[40000.0, 0.0, 0.0], [40000.0, 0.0, 0.0]], (1, 2), dtype="float16", reduction="mean"
        ),
        "wide",
        _VALUES,
    ),
)

_SOFT = _group(
    "soft targets",
    (
        "soft-sum-2",
        "probabilities that sum to 2",
        _case(B, [[0.0, 2.0, 0.0], SOFT[1]]),
        "soft",
        _VALUES,
    ),
    (
        "soft-sum-half",
        "probabilities that sum to 0.5",
        _case(B, [[0.0, 0.5, 0.0], SOFT[1]]),
        "soft",
        _VALUES,
    ),
    ("soft-zero-row", "probabilities all 0", _case(B, [[0.0, 0.0, 0.0], SOFT[1]]), "soft", _VALUES),
    (
        "soft-zero-row-mean",
        "a row of probabilities all 0, mean",
        _case(B, [[0.0, 0.0, 0.0], ONE_HOT[1]], reduction="mean"),
        "soft",
        _VALUES,
    ),
    (
        "soft-negative",
        "a negative probability",
        _case(B, [[-0.5, 1.0, 0.5], SOFT[1]]),
        "soft",
        _VALUES,
    ),
    (
        "soft-no-rows-mean",
        "no rows of probabilities, mean",
        _case(
            np.empty((0, 3)),
            np.empty((0, 3)),
            target_dtype="float32",
            kind="probabilities",
            reduction="mean",
        ),
        "empty",
        _VALUES,
    ),
    (
        "soft-one-class",
        "one class with probability 0.5",
        _case([[1.5], [-2.0]], [[0.5], [1.0]]),
        "soft",
        _VALUES,
    ),
    (
        "soft-mean",
        "probabilities, mean",
        _case(B, SOFT, reduction="mean"),
        "mean",
        _VALUES,
    ),
)

_WEIGHTS = _group(
    "weights",
    ("weight-none", "class weights", _case(B, T, weight=W), "mean", _VALUES),
    (
        "weight-mean",
        "class weights, mean",
        _case(B, T, weight=W, reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "weight-one-hot-mean",
        "class weights with one-hot rows, mean",
        _case(B, ONE_HOT, weight=W, reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "weight-soft-mean",
        "class weights with probabilities, mean",
        _case(B, SOFT, weight=W, reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "weight-zero-mean",
        "class weight 0 for all targets, mean",
        _case(B, T, weight=_float32(1.0, 0.0, 0.0), reduction="mean"),
        "empty",
        _VALUES,
    ),
    (
        "weight-zero-soft-mean",
        "class weight 0 for all targets as one-hot rows, mean",
        _case(B, ONE_HOT, weight=_float32(1.0, 0.0, 0.0), reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "weight-nan-unused",
        "a NaN class weight that no target has",
        _case(B, T, weight=_float32(NAN, 2.0, 3.0)),
        "weight",
        _VALUES,
    ),
    (
        "weight-negative-mean",
        "a negative class weight, mean",
        _case(B, T, weight=_float32(1.0, -1.0, 3.0), reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "weight-too-short",
        "class weights for 2 of 3 classes",
        _case(B, T, weight=_float32(1.0, 2.0)),
        "weight",
        _VALUE_ERROR,
    ),
    (
        "weight-float64",
        "class weights in float64 with float32 logits",
        _case(B, T, weight=W.astype(np.float64)),
        "weight",
        _VALUES,
    ),
    (
        "weight-int64",
        "class weights in int64",
        _case(B, T, weight=W.astype(np.int64)),
        "weight",
        _VALUES,
    ),
    ("smoothing", "label_smoothing=0.1", _case(B, T, label_smoothing=0.1), "smoothing", _VALUES),
    (
        "smoothing-weight-mean",
        "label_smoothing=0.1 with class weights, mean",
        _case(B, T, label_smoothing=0.1, weight=W, reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "smoothing-weight-one-hot-mean",
        "label_smoothing=0.1 with class weights and one-hot rows, mean",
        _case(B, ONE_HOT, label_smoothing=0.1, weight=W, reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "smoothing-ignored-mean",
        "label_smoothing=0.1 with an ignored row, mean",
        _case(B, (-100, 2), label_smoothing=0.1, ignore_index=-100, reduction="mean"),
        "mean",
        _VALUES,
    ),
    (
        "smoothing-axis-1",
        "label_smoothing=0.1 with 3 classes on axis 1 of 3",
        _case(
            np.stack([B, B[::-1]], axis=-1)[..., [0, 1, 0, 1]],
            np.moveaxis(np.eye(3)[[[1, 2, 0, 1], [2, 1, 0, 2]]], -1, 1),
            label_smoothing=0.1,
            axis=1,
        ),
        "smoothing",
        _VALUES,
    ),
    (
        "smoothing-negative",
        "label_smoothing=-0.1",
        _case(B, T, label_smoothing=-0.1),
        "smoothing range",
        _VALUE_ERROR,
    ),
    (
        "smoothing-nan",
        "label_smoothing=nan",
        _case(B, T, label_smoothing=NAN),
        "smoothing range",
        _VALUE_ERROR,
    ),
    (
        "smoothing-above-1",
        "label_smoothing=1.5",
        _case(B, T, label_smoothing=1.5),
        "smoothing range",
        _VALUE_ERROR,
    ),
    (
        "sample-weight-mean",
        "sample weights 1 and 3, mean",
        _case(B, T, sample_weight=_float32(1.0, 3.0), reduction="mean"),
        "sample weight",
        _VALUES,
    ),
    (
        "sample-weight-weighted-mean",
        "sample weights 1 and 3, weighted mean",
        _case(B, T, sample_weight=_float32(1.0, 3.0), reduction="weighted_mean"),
        "sample weight",
        _VALUES,
    ),
    (
        "sample-weight-zero-mean",
        "sample weights 0 and 3, mean",
        _case(B, T, sample_weight=_float32(0.0, 3.0), reduction="mean"),
        "sample weight",
        _VALUES,
    ),
    (
        "sample-weight-ignored-mean",
        "sample weights 5 and 3 with the first row ignored, mean",
        _case(B, (-100, 2), sample_weight=_float32(5.0, 3.0), ignore_index=-100, reduction="mean"),
        "sample weight",
        _VALUES,
    ),
    (
        "sample-weight-soft-mean",
        "sample weights 1 and 3 with probabilities, mean",
        _case(B, SOFT, sample_weight=_float32(1.0, 3.0), reduction="mean"),
        "sample weight",
        _VALUES,
    ),
    (
        "ignore-soft-default",
        "ignore_index=-100 with probabilities",
        _case(B, SOFT, ignore_index=-100),
        "ignore soft",
        _VALUES,
    ),
    (
        "ignore-soft",
        "ignore_index=1 with probabilities",
        _case(B, SOFT, ignore_index=1),
        "ignore soft",
        _TYPE_ERROR,
    ),
)

_SHAPES = _group(
    "shapes",
    ("short-target", "1 target for 2 rows", _case(B, (1,)), "shapes", _VALUE_ERROR),
    (
        "long-target-raw",
        "3 class indices for 2 rows of 3 classes, not as one-hot rows",
        _case(B, (1, 2, 0), encode=False),
        "shapes",
        _VALUE_ERROR,
    ),
    (
        "short-target-raw",
        "1 class index for 2 rows, not as a one-hot row",
        _case(B, (1,), encode=False),
        "shapes",
        _VALUE_ERROR,
    ),
    (
        "column-target",
        "targets of shape (2, 1)",
        _case(B, ((1,), (2,))),
        "shapes",
        _VALUE_ERROR,
    ),
    (
        "column-target-raw",
        "class indices of shape (2, 1), not as one-hot rows",
        _case(B, ((1,), (2,)), encode=False),
        "shapes",
        _VALUE_ERROR,
    ),
    ("scalar-target", "a 0-d target for 2 rows", _case(B, 1), "shapes", _VALUE_ERROR),
    (
        "scalar-target-raw",
        "a 0-d class index for 2 rows, not as a one-hot row",
        _case(B, 1, encode=False),
        "shapes",
        _VALUE_ERROR,
    ),
    ("vector", "1-D logits with a 0-d target", _case(B[0], 1), "shapes", _VALUES),
    ("vector-vector", "1-D logits with a 1-D target", _case(B[0], (1,)), "shapes", _VALUE_ERROR),
    (
        "soft-one-row",
        "one row of probabilities for 2 rows",
        _case(B, SOFT[:1]),
        "shapes",
        _VALUE_ERROR,
    ),
    (
        "soft-vector",
        "1-D probabilities for 2 rows",
        _case(B, [0.2, 0.5, 0.3], kind="probabilities"),
        "shapes",
        _TYPE_ERROR | _VALUE_ERROR,
    ),
    (
        "soft-too-wide",
        "probabilities of 4 classes for 3",
        _case(B, np.full((2, 4), 0.25)),
        "shapes",
        _VALUE_ERROR,
    ),
    (
        "scalar-logits",
        "0-d logits",
        _case(np.float64(1.0), 0, encode=False),
        "shapes",
        _VALUE_ERROR,
    ),
    (
        "images",
        "logits of shape (N, C, H, W) with axis=1",
        _case(
            np.arange(24.0).reshape(2, 3, 2, 2) % 7.0,
            np.arange(8).reshape(2, 2, 2) % 3,
            axis=1,
        ),
        "axis",
        _VALUES,
    ),
    (
        "sequences",
        "logits of shape (N, T, C) with axis=-1",
        _case(
            np.arange(18.0).reshape(2, 3, 3) % 7.0,
            np.arange(6).reshape(2, 3) % 3,
            axis=-1,
        ),
        "axis",
        _VALUES,
    ),
    (
        "square-sequences",
        "logits of shape (N, T, C) with T = C and no axis",
        _case(np.arange(18.0).reshape(2, 3, 3) % 7.0, np.arange(6).reshape(2, 3) % 3),
        "axis",
        _VALUE_ERROR,
    ),
)

_TARGET_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64")

_DTYPES = _group(
    "dtypes",
    *(
        (
            f"target-{dtype}",
            f"targets in {dtype}",
            _case(B, T, target_dtype=dtype),
            "target dtype",
            _VALUES,
        )
        for dtype in _TARGET_INTEGERS
    ),
    (
        "target-uint8-156",
        "a target of 156 in uint8, which is -100 in int8",
        _case(np.tile([0.0, 1.0], (1, 150)), (156,), target_dtype="uint8"),
        "target dtype",
        _VALUES,
    ),
    (
        "target-uint8-255",
        "a target of 255 in uint8, out of range",
        _case(B, (255, 2), target_dtype="uint8"),
        "range",
        _OUT_OF_RANGE,
    ),
    (
        "target-bool",
        "targets in bool",
        _case(B, (1, 0), target_dtype="bool", encode=False),
        "target dtype",
        _TYPE_ERROR,
    ),
    (
        "target-float",
        "targets of 1.7 and 2.0 in float32",
        _case(B, (1.7, 2.0), kind="indices", encode=False),
        "target dtype",
        _TYPE_ERROR,
    ),
    (
        "target-integer-rows",
        "integer one-hot rows",
        _case(B, ONE_HOT.astype(np.int64), kind="probabilities"),
        "target dtype",
        _TYPE_ERROR,
    ),
    (
        "soft-float64-target",
        "float64 probabilities with float32 logits",
        _case(B, SOFT, target_dtype="float64"),
        "output dtype",
        {"exact_dtype": True},
    ),
    (
        "soft-float32-target",
        "float32 probabilities with bfloat16 logits",
        _case(EXACT, EXACT_SOFT, dtype="bfloat16", target_dtype="float32"),
        "output dtype",
        {"exact_dtype": True},
    ),
    *(
        (
            f"logits-{dtype}",
            f"logits in {dtype}",
            _case(EXACT, T, dtype=dtype),
            "output dtype",
            {"exact_dtype": True},
        )
        for dtype in ("float16", "bfloat16", "float64")
    ),
    *(
        (
            f"logits-{dtype}",
            f"logits in {dtype}",
            _case(np.asarray([[1, 2, 0], [0, 1, 2]]), T, dtype=dtype),
            "logits dtype",
            _TYPE_ERROR,
        )
        for dtype in ("int32", "bool", "complex64")
    ),
    (
        "bfloat16-target-257",
        "a target of 257 with bfloat16 logits",
        _case(np.tile([0.0, 1.0], (1, 150)), (257,), dtype="bfloat16"),
        "target dtype",
        _VALUES,
    ),
    (
        "float16-target-2049",
        "a target of 2,049 with float16 logits",
        _case(np.tile([0.0, 1.0], (1, 1030)), (2049,), dtype="float16"),
        "target dtype",
        _VALUES,
    ),
    (
        "bfloat16-ignore-257",
        "ignore_index=257 and a target of 256 with bfloat16 logits",
        _case(np.tile([0.0, 1.0], (1, 150)), (256,), dtype="bfloat16", ignore_index=257),
        "ignore",
        _VALUES,
    ),
)

CORNERS = {
    corner.name: corner
    for corner in (
        *_INDICES,
        *_INFINITIES,
        *_EXTREMES,
        *_SOFT,
        *_WEIGHTS,
        *_SHAPES,
        *_DTYPES,
    )
}
"""Every corner case of cross-entropy by its name."""


def _binary(logits: Any, target: Any, **more: Any) -> Case:
    """Make a case of the binary loss; integers among the targets stay so."""
    return replace(_case(logits, target, **more), loss="binary_cross_entropy", kind="probabilities")


BINARY_CORNERS = {
    corner.name: corner
    for corner in _group(
        "binary cross-entropy",
        (
            "binary-confident",
            "logits of 20 and -20 with their own targets",
            _binary([20.0, -20.0], (1.0, 0.0)),
            "binary formula",
            _VALUES,
        ),
        (
            "binary-wrong",
            "logits of 200 and -200 with the other targets",
            _binary([200.0, -200.0], (0.0, 1.0)),
            "binary formula",
            _VALUES,
        ),
        (
            "binary-1e30",
            "logits of 1e30 and -1e30",
            _binary([1e30, -1e30], (0.0, 0.0)),
            "binary formula",
            _VALUES,
        ),
        (
            "binary-subnormal-gradient",
            "a logit of 95 with target 1: its gradient is subnormal",
            _binary([95.0, 0.0], (1.0, 1.0)),
            "subnormal",
            _VALUES,
        ),
        (
            "binary-infinity-right",
            "infinite logits with their own targets",
            _binary([INF, -INF], (1.0, 0.0)),
            "binary infinities",
            {"signed_zero": True},
        ),
        (
            "binary-infinity-wrong",
            "infinite logits with the other targets",
            _binary([INF, -INF], (0.0, 1.0)),
            "binary infinities",
            _VALUES,
        ),
        (
            "binary-nan",
            "a NaN logit",
            _binary([NAN, 1.0], (1.0, 0.0)),
            "binary infinities",
            _VALUES,
        ),
        (
            "binary-soft",
            "probabilities as targets",
            _binary([1.0, -2.0], (0.25, 0.75)),
            "binary formula",
            _VALUES,
        ),
        (
            "binary-target-2",
            "a target of 2",
            _binary([1.0, -2.0], (2.0, 0.0)),
            "binary target",
            _VALUES,
        ),
        (
            "binary-target-int64",
            "integer targets",
            _binary([1.0, -2.0], (1, 0)),
            "binary target",
            _VALUES,
        ),
        (
            "binary-target-bool",
            "bool targets",
            _binary([1.0, -2.0], (True, False), target_dtype="bool"),
            "binary target",
            _TYPE_ERROR,
        ),
        (
            "binary-target-of-one-row",
            "targets of one row for logits of two",
            _binary([[1.0, -2.0], [0.5, 0.0]], (1.0, 0.0)),
            "binary target",
            _VALUE_ERROR,
        ),
        (
            "binary-no-logits-mean",
            "no logits, mean",
            _binary(np.empty(0), (), target_dtype="float32", reduction="mean"),
            "empty",
            _VALUES,
        ),
        (
            "binary-weight-mean",
            "weights, mean",
            _binary([1.0, -2.0], (1.0, 1.0), reduction="mean", weight=_float32(1.0, 3.0)),
            "binary weight",
            _VALUES,
        ),
        (
            "binary-weight-zero",
            "a weight of 0 at an infinite loss",
            _binary([-INF, 1.0], (1.0, 1.0), weight=_float32(0.0, 1.0)),
            "binary weight",
            _VALUES,
        ),
        (
            "binary-pos-weight",
            "positive weights",
            _binary([20.0, -2.0], (1.0, 1.0), pos_weight=_float32(2.0, 3.0)),
            "binary weight",
            _VALUES,
        ),
        (
            "binary-smoothing",
            "label_smoothing=0.25",
            _binary([1.0, -2.0], (1.0, 0.0), label_smoothing=0.25),
            "binary smoothing",
            _VALUES,
        ),
        (
            "binary-smoothing-2",
            "label_smoothing=2",
            _binary([1.0, -2.0], (1.0, 0.0), label_smoothing=2.0),
            "binary smoothing",
            _VALUE_ERROR,
        ),
        (
            "binary-float16-mean-overflow",
            "the mean of two losses of 40,000 in float16, whose sum overflows",
            _binary([40000.0, 40000.0], (0.0, 0.0), dtype="float16", reduction="mean"),
            "wide",
            _VALUES,
        ),
        *(
            (
                f"binary-logits-{dtype}",
                f"logits in {dtype}",
                _binary([1.0, -2.0], (1.0, 0.0), dtype=dtype),
                "output dtype",
                {"exact_dtype": True},
            )
            for dtype in ("float16", "bfloat16", "float64")
        ),
    )
}
"""Every corner case of binary cross-entropy by its name."""
