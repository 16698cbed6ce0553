"""Logits far apart, large and small."""

import numpy as np

from xentx.compare.corners._corner import (
    VALUES,
    B,
    group_of,
    make_case,
)

CORNERS = group_of(
    "extremes",
    ("confident-15", "[15, 0] with target 0", make_case([[15.0, 0.0]], (0,)), "formula", VALUES),
    ("confident-20", "[20, 0] with target 0", make_case([[20.0, 0.0]], (0,)), "formula", VALUES),
    (
        "confident-8-bfloat16",
        "two rows of [8, 0, -1000] with target 0 in bfloat16",
        make_case([[8.0, 0.0, -1000.0]] * 2, (0, 0), dtype="bfloat16"),
        "formula",
        VALUES,
    ),
    (
        "confident-8-float16",
        "two rows of [8, 0, -1000] with target 0 in float16",
        make_case([[8.0, 0.0, -1000.0]] * 2, (0, 0), dtype="float16"),
        "formula",
        VALUES,
    ),
    ("wrong-20", "[0, 20] with target 0", make_case([[0.0, 20.0]], (0,)), "formula", VALUES),
    (
        "not-probabilities",
        "[2, 1, 1] with target 0, also where from_logits is forgotten",
        make_case([[2.0, 1.0, 1.0], B[1]], (0, 2)),
        "formula",
        VALUES,
    ),
    (
        "exp-overflows",
        "[1000, 0, 0] with target 0",
        make_case([[1000.0, 0.0, 0.0], B[1]], (0, 2)),
        "formula",
        VALUES,
    ),
    (
        "exp-underflows",
        "[-1000, -1000] with target 0",
        make_case([[-1000.0, -1000.0]], (0,)),
        "formula",
        VALUES,
    ),
    ("200-to-0", "[200, 0] with target 1", make_case([[200.0, 0.0]], (1,)), "formula", VALUES),
    ("1e4-to-0", "[1e4, 0] with target 0", make_case([[1e4, 0.0]], (0,)), "formula", VALUES),
    ("1e30-to-0", "[1e30, 0] with target 1", make_case([[1e30, 0.0]], (1,)), "formula", VALUES),
    (
        "opposite-3e38-right",
        "[3e38, -3e38] with target 0",
        make_case([[3e38, -3e38]], (0,)),
        "formula",
        VALUES,
    ),
    (
        "opposite-3e38-wrong",
        "[3e38, -3e38] with target 1: the loss overflows",
        make_case([[3e38, -3e38]], (1,)),
        "formula",
        VALUES,
    ),
    (
        "equal-3e38",
        "[3e38, 3e38] with target 0",
        make_case([[3e38, 3e38]], (0,)),
        "formula",
        VALUES,
    ),
    (
        "equal-minus-1e30",
        "[-1e30, -1e30] with target 0",
        make_case([[-1e30, -1e30]], (0,)),
        "formula",
        VALUES,
    ),
    (
        "offset-1e4",
        "the worked example's first row plus 10,000",
        make_case([[10001.0, 10002.0, 10000.5], B[1]], (1, 2)),
        "formula",
        VALUES,
    ),
    (
        "subnormal-gradient",
        "[0, -95] with target 0: the other class's gradient is subnormal",
        make_case([[0.0, -95.0]], (0,)),
        "subnormal",
        VALUES,
    ),
    (
        "float16-zeros-65536",
        "65,536 zeros in float16",
        make_case(np.zeros((1, 65536)), (0,), dtype="float16"),
        "wide",
        VALUES,
    ),
    (
        "float16-mean-overflow",
        "the mean of two rows of loss 40,000 in float16, whose sum overflows",
        make_case(
            [[40000.0, 0.0, 0.0], [40000.0, 0.0, 0.0]], (1, 2), dtype="float16", reduction="mean"
        ),
        "wide",
        VALUES,
    ),
)
