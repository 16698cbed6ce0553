"""Targets that are probabilities."""

import numpy as np

from xentx.compare.corners._corner import (
    ONE_HOT,
    SOFT,
    VALUES,
    B,
    group_of,
    make_case,
)

CORNERS = group_of(
    "soft targets",
    (
        "soft-sum-2",
        "probabilities that sum to 2",
        make_case(B, [[0.0, 2.0, 0.0], SOFT[1]]),
        "soft",
        VALUES,
    ),
    (
        "soft-sum-half",
        "probabilities that sum to 0.5",
        make_case(B, [[0.0, 0.5, 0.0], SOFT[1]]),
        "soft",
        VALUES,
    ),
    (
        "soft-zero-row",
        "probabilities all 0",
        make_case(B, [[0.0, 0.0, 0.0], SOFT[1]]),
        "soft",
        VALUES,
    ),
    (
        "soft-zero-row-mean",
        "a row of probabilities all 0, mean",
        make_case(B, [[0.0, 0.0, 0.0], ONE_HOT[1]], reduction="mean"),
        "soft",
        VALUES,
    ),
    (
        "soft-negative",
        "a negative probability",
        make_case(B, [[-0.5, 1.0, 0.5], SOFT[1]]),
        "soft",
        VALUES,
    ),
    (
        "soft-no-rows-mean",
        "no rows of probabilities, mean",
        make_case(
            np.empty((0, 3)),
            np.empty((0, 3)),
            target_dtype="float32",
            kind="probabilities",
            reduction="mean",
        ),
        "empty",
        VALUES,
    ),
    (
        "soft-one-class",
        "one class with probability 0.5",
        make_case([[1.5], [-2.0]], [[0.5], [1.0]]),
        "soft",
        VALUES,
    ),
    (
        "soft-mean",
        "probabilities, mean",
        make_case(B, SOFT, reduction="mean"),
        "mean",
        VALUES,
    ),
)
