"""Shapes that fit, and shapes that don't."""

import numpy as np

from xentx.compare.corners._corner import (
    SOFT,
    VALUE_ERROR,
    VALUES,
    B,
    group_of,
    make_case,
)

CORNERS = group_of(
    "shapes",
    ("short-target", "1 target for 2 rows", make_case(B, (1,)), "shapes", VALUE_ERROR),
    (
        "long-target-raw",
        "3 class indices for 2 rows of 3 classes, not as one-hot rows",
        make_case(B, (1, 2, 0), encode=False),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "short-target-raw",
        "1 class index for 2 rows, not as a one-hot row",
        make_case(B, (1,), encode=False),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "column-target",
        "targets of shape (2, 1)",
        make_case(B, ((1,), (2,))),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "column-target-raw",
        "class indices of shape (2, 1), not as one-hot rows",
        make_case(B, ((1,), (2,)), encode=False),
        "shapes",
        VALUE_ERROR,
    ),
    ("scalar-target", "a 0-d target for 2 rows", make_case(B, 1), "shapes", VALUE_ERROR),
    (
        "scalar-target-raw",
        "a 0-d class index for 2 rows, not as a one-hot row",
        make_case(B, 1, encode=False),
        "shapes",
        VALUE_ERROR,
    ),
    ("vector", "1-D logits with a 0-d target", make_case(B[0], 1), "shapes", VALUES),
    ("vector-vector", "1-D logits with a 1-D target", make_case(B[0], (1,)), "shapes", VALUE_ERROR),
    (
        "soft-one-row",
        "one row of probabilities for 2 rows",
        make_case(B, SOFT[:1]),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "soft-vector",
        "1-D probabilities for 2 rows",
        make_case(B, [0.2, 0.5, 0.3], kind="probabilities"),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "soft-too-wide",
        "probabilities of 4 classes for 3",
        make_case(B, np.full((2, 4), 0.25)),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "scalar-logits",
        "0-d logits",
        make_case(np.float64(1.0), 0, encode=False),
        "shapes",
        VALUE_ERROR,
    ),
    (
        "images",
        "logits of shape (N, C, H, W) with axis=1",
        make_case(
            np.arange(24.0).reshape(2, 3, 2, 2) % 7.0,
            np.arange(8).reshape(2, 2, 2) % 3,
            axis=1,
        ),
        "axis",
        VALUES,
    ),
    (
        "sequences",
        "logits of shape (N, T, C) with axis=-1",
        make_case(
            np.arange(18.0).reshape(2, 3, 3) % 7.0,
            np.arange(6).reshape(2, 3) % 3,
            axis=-1,
        ),
        "axis",
        VALUES,
    ),
    (
        "square-sequences",
        "logits of shape (N, T, C) with T = C and no axis",
        make_case(np.arange(18.0).reshape(2, 3, 3) % 7.0, np.arange(6).reshape(2, 3) % 3),
        "axis",
        VALUE_ERROR,
    ),
)
