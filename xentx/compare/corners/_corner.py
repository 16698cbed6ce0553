"""What a corner case is, xentx's rules in words, and what the tables of corners are made of."""

import math
from dataclasses import dataclass
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


def make_case(
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


def float32(*values: float) -> Array:
    return np.asarray(values, np.float32)


def group_of(group: Group, *rows: tuple[str, str, Case, str, dict[str, Any]]) -> list[Corner]:
    return [
        Corner(name=name, group=group, title=title, case=case, rule=rule, **rest)
        for name, title, case, rule, rest in rows
    ]


OUT_OF_RANGE: dict[str, Any] = {"error": "IndexError", "by_value": True}
VALUE_ERROR: dict[str, Any] = {"error": "ValueError"}
TYPE_ERROR: dict[str, Any] = {"error": "TypeError"}
VALUES: dict[str, Any] = {}
