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
    "range": "A class index out of range raises an IndexError that names the value, its position "
    "and the number of classes. If the target is traced, the loss and the gradient of the row are "
    "NaN. An index is never wrapped or clamped.",
    "ignore": "ignore_index is -100 by default, in every framework. An ignored row has loss +0 and "
    "gradient exactly 0, even if its logits are NaN or infinite.",
    "ignore soft": "ignore_index is for integer targets only. With a soft target, any value other "
    "than the default raises a TypeError.",
    "empty": "An empty mean is NaN, and its gradient is exactly 0. An empty sum is 0.",
    "no classes": "Logits without classes raise a ValueError.",
    "one class": "With one class, the loss is +0.0 and the gradient is 0.",
    "infinities": "A class at -inf contributes 0 if its q is 0. If its q is positive, the loss is "
    "+inf and the gradient is finite. A row with +inf or NaN, or with -inf only, is NaN. Other "
    "rows are not affected.",
    "smoothed infinity": "With label smoothing, a class at -inf makes the loss +inf.",
    "formula": "Loss and gradient have full relative precision, also for confident rows.",
    "soft": "Probabilities need not sum to 1. The gradient is A p - q, where A is the sum of q.",
    "mean": "For class indices, 'mean' divides by the sum of w[t] over the rows that are not "
    "ignored, also with smoothing. For soft targets, it divides by the number of rows.",
    "sample weight": "With sample weights, 'mean' divides by the sum of sample_weight * w[t] for "
    "class indices, and by the sum of sample_weight for soft targets. Ignored rows do not count. "
    "'weighted_mean' divides by the sum of q.",
    "smoothing": "q_k = (1 - s) w_t [k = t] + (s / C) w_k, where C is the number of classes, for "
    "any class axis.",
    "smoothing range": "label_smoothing outside of [0, 1], or NaN, raises a ValueError.",
    "weight": "A class weight has length C and any real dtype. Another shape raises a ValueError.",
    "shapes": "Nothing is broadcast or squeezed: a wrong shape raises a ValueError. 1-D logits "
    "with a 0-d target are valid. 0-d logits raise a ValueError.",
    "axis": "The class axis is the last axis by default. If logits have 3 or more dimensions, axis "
    "is required, and its absence raises a ValueError.",
    "target dtype": "Class indices can have every integer dtype. bool, float indices, and integers "
    "in the shape of the logits raise a TypeError.",
    "logits dtype": "Logits can be float16, bfloat16, float32 or float64. int, bool and complex "
    "raise a TypeError.",
    "output dtype": "The result has the dtype of the logits.",
    "wide": "float16 and bfloat16 are computed in float32, accumulated in a wider dtype, and "
    "rounded once.",
    "binary formula": "The loss is p y log(1 + exp(-x)) + (1 - y) log(1 + exp(x)). Loss and "
    "gradient have full relative precision.",
    "binary infinities": "The loss of an infinite logit is 0 if its sign agrees with the target, "
    "and +inf otherwise. A NaN affects only its own element.",
    "binary target": "The target has the shape of the logits. Its values are floats or integers. "
    "bool raises a TypeError. Nothing is broadcast or squeezed: a wrong shape raises a ValueError.",
    "binary weight": "weight and pos_weight broadcast to the shape of the logits. A weight of 0 "
    "makes an infinite loss 0. 'mean' divides by the number of logits.",
    "binary smoothing": "The smoothed target is (1 - s) y + s / 2. s outside of [0, 1], or NaN, "
    "raises a ValueError.",
    "subnormal": "A result below the smallest normal number may be flushed to 0.",
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
