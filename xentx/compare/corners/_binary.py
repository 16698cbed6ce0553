"""Binary cross-entropy."""

from dataclasses import replace
from typing import Any

import numpy as np

from xentx.compare.case import Case
from xentx.compare.corners._corner import (
    INF,
    NAN,
    TYPE_ERROR,
    VALUE_ERROR,
    VALUES,
    float32,
    group_of,
    make_case,
)


def _binary(logits: Any, target: Any, **more: Any) -> Case:
    """Make a case of the binary loss; integers among the targets stay so."""
    return replace(
        make_case(logits, target, **more), loss="binary_cross_entropy", kind="probabilities"
    )


CORNERS = group_of(
    "binary cross-entropy",
    (
        "binary-confident",
        "logits of 20 and -20 with their own targets",
        _binary([20.0, -20.0], (1.0, 0.0)),
        "binary formula",
        VALUES,
    ),
    (
        "binary-wrong",
        "logits of 200 and -200 with the other targets",
        _binary([200.0, -200.0], (0.0, 1.0)),
        "binary formula",
        VALUES,
    ),
    (
        "binary-1e30",
        "logits of 1e30 and -1e30",
        _binary([1e30, -1e30], (0.0, 0.0)),
        "binary formula",
        VALUES,
    ),
    (
        "binary-subnormal-gradient",
        "a logit of 95 with target 1: its gradient is subnormal",
        _binary([95.0, 0.0], (1.0, 1.0)),
        "subnormal",
        VALUES,
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
        VALUES,
    ),
    (
        "binary-nan",
        "a NaN logit",
        _binary([NAN, 1.0], (1.0, 0.0)),
        "binary infinities",
        VALUES,
    ),
    (
        "binary-soft",
        "probabilities as targets",
        _binary([1.0, -2.0], (0.25, 0.75)),
        "binary formula",
        VALUES,
    ),
    (
        "binary-target-2",
        "a target of 2",
        _binary([1.0, -2.0], (2.0, 0.0)),
        "binary target",
        VALUES,
    ),
    (
        "binary-target-int64",
        "integer targets",
        _binary([1.0, -2.0], (1, 0)),
        "binary target",
        VALUES,
    ),
    (
        "binary-target-bool",
        "bool targets",
        _binary([1.0, -2.0], (True, False), target_dtype="bool"),
        "binary target",
        TYPE_ERROR,
    ),
    (
        "binary-target-of-one-row",
        "targets of one row for logits of two",
        _binary([[1.0, -2.0], [0.5, 0.0]], (1.0, 0.0)),
        "binary target",
        VALUE_ERROR,
    ),
    (
        "binary-no-logits-mean",
        "no logits, mean",
        _binary(np.empty(0), (), target_dtype="float32", reduction="mean"),
        "empty",
        VALUES,
    ),
    (
        "binary-weight-mean",
        "weights, mean",
        _binary([1.0, -2.0], (1.0, 1.0), reduction="mean", weight=float32(1.0, 3.0)),
        "binary weight",
        VALUES,
    ),
    (
        "binary-weight-zero",
        "a weight of 0 at an infinite loss",
        _binary([-INF, 1.0], (1.0, 1.0), weight=float32(0.0, 1.0)),
        "binary weight",
        VALUES,
    ),
    (
        "binary-pos-weight",
        "positive weights",
        _binary([20.0, -2.0], (1.0, 1.0), pos_weight=float32(2.0, 3.0)),
        "binary weight",
        VALUES,
    ),
    (
        "binary-smoothing",
        "label_smoothing=0.25",
        _binary([1.0, -2.0], (1.0, 0.0), label_smoothing=0.25),
        "binary smoothing",
        VALUES,
    ),
    (
        "binary-smoothing-2",
        "label_smoothing=2",
        _binary([1.0, -2.0], (1.0, 0.0), label_smoothing=2.0),
        "binary smoothing",
        VALUE_ERROR,
    ),
    (
        "binary-float16-mean-overflow",
        "the mean of two losses of 40,000 in float16, whose sum overflows",
        _binary([40000.0, 40000.0], (0.0, 0.0), dtype="float16", reduction="mean"),
        "wide",
        VALUES,
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
