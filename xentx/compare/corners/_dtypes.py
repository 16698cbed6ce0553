"""Dtypes of logits and targets."""

import numpy as np

from xentx.compare.corners._corner import (
    EXACT,
    EXACT_SOFT,
    ONE_HOT,
    OUT_OF_RANGE,
    SOFT,
    TYPE_ERROR,
    VALUES,
    B,
    T,
    group_of,
    make_case,
)

_TARGET_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64")

CORNERS = group_of(
    "dtypes",
    *(
        (
            f"target-{dtype}",
            f"targets in {dtype}",
            make_case(B, T, target_dtype=dtype),
            "target dtype",
            VALUES,
        )
        for dtype in _TARGET_INTEGERS
    ),
    (
        "target-uint8-156",
        "a target of 156 in uint8, which is -100 in int8",
        make_case(np.tile([0.0, 1.0], (1, 150)), (156,), target_dtype="uint8"),
        "target dtype",
        VALUES,
    ),
    (
        "target-uint8-255",
        "a target of 255 in uint8, out of range",
        make_case(B, (255, 2), target_dtype="uint8"),
        "range",
        OUT_OF_RANGE,
    ),
    (
        "target-bool",
        "targets in bool",
        make_case(B, (1, 0), target_dtype="bool", encode=False),
        "target dtype",
        TYPE_ERROR,
    ),
    (
        "target-float",
        "targets of 1.7 and 2.0 in float32",
        make_case(B, (1.7, 2.0), kind="indices", encode=False),
        "target dtype",
        TYPE_ERROR,
    ),
    (
        "target-integer-rows",
        "integer one-hot rows",
        make_case(B, ONE_HOT.astype(np.int64), kind="probabilities"),
        "target dtype",
        TYPE_ERROR,
    ),
    (
        "soft-float64-target",
        "float64 probabilities with float32 logits",
        make_case(B, SOFT, target_dtype="float64"),
        "output dtype",
        {"exact_dtype": True},
    ),
    (
        "soft-float32-target",
        "float32 probabilities with bfloat16 logits",
        make_case(EXACT, EXACT_SOFT, dtype="bfloat16", target_dtype="float32"),
        "output dtype",
        {"exact_dtype": True},
    ),
    *(
        (
            f"logits-{dtype}",
            f"logits in {dtype}",
            make_case(EXACT, T, dtype=dtype),
            "output dtype",
            {"exact_dtype": True},
        )
        for dtype in ("float16", "bfloat16", "float64")
    ),
    *(
        (
            f"logits-{dtype}",
            f"logits in {dtype}",
            make_case(np.asarray([[1, 2, 0], [0, 1, 2]]), T, dtype=dtype),
            "logits dtype",
            TYPE_ERROR,
        )
        for dtype in ("int32", "bool", "complex64")
    ),
    (
        "bfloat16-target-257",
        "a target of 257 with bfloat16 logits",
        make_case(np.tile([0.0, 1.0], (1, 150)), (257,), dtype="bfloat16"),
        "target dtype",
        VALUES,
    ),
    (
        "float16-target-2049",
        "a target of 2,049 with float16 logits",
        make_case(np.tile([0.0, 1.0], (1, 1030)), (2049,), dtype="float16"),
        "target dtype",
        VALUES,
    ),
    (
        "bfloat16-ignore-257",
        "ignore_index=257 and a target of 256 with bfloat16 logits",
        make_case(np.tile([0.0, 1.0], (1, 150)), (256,), dtype="bfloat16", ignore_index=257),
        "ignore",
        VALUES,
    ),
)
