"""Logits that are infinite or NaN."""

from xentx.compare.corners._corner import (
    INF,
    NAN,
    SOFT,
    VALUES,
    B,
    T,
    float32,
    group_of,
    make_case,
)

CORNERS = group_of(
    "infinities",
    (
        "minus-inf-elsewhere",
        "-inf at another class",
        make_case([[1.0, 0.0, -INF], B[1]], (0, 2)),
        "infinities",
        VALUES,
    ),
    (
        "minus-inf-at-target",
        "-inf at the target",
        make_case([[1.0, 0.0, -INF], B[1]], (2, 2)),
        "infinities",
        VALUES,
    ),
    (
        "minus-inf-everywhere",
        "a row all -inf",
        make_case([[-INF, -INF, -INF], B[1]], T),
        "infinities",
        VALUES,
    ),
    (
        "plus-inf-elsewhere",
        "+inf at another class",
        make_case([[1.0, 0.0, INF], B[1]], T),
        "infinities",
        VALUES,
    ),
    (
        "plus-inf-at-target",
        "+inf at the target",
        make_case([[1.0, INF, 0.5], B[1]], T),
        "infinities",
        VALUES,
    ),
    ("nan-logit", "a NaN logit", make_case([[1.0, NAN, 0.5], B[1]], T), "infinities", VALUES),
    (
        "soft-zero-at-minus-inf",
        "probability 0 at a class at -inf",
        make_case([[1.0, 2.0, -INF], B[1]], [[0.25, 0.75, 0.0], SOFT[1]]),
        "infinities",
        VALUES,
    ),
    (
        "soft-positive-at-minus-inf",
        "probability above 0 at a class at -inf",
        make_case([[1.0, 2.0, -INF], B[1]], [[0.25, 0.5, 0.25], SOFT[1]]),
        "infinities",
        VALUES,
    ),
    (
        "soft-minus-inf-everywhere",
        "probabilities with a row all -inf",
        make_case([[-INF, -INF, -INF], B[1]], SOFT),
        "infinities",
        VALUES,
    ),
    (
        "soft-nan-probability",
        "a NaN among the probabilities",
        make_case(B, [[0.2, NAN, 0.3], [0.1, 0.1, 0.8]]),
        "infinities",
        VALUES,
    ),
    (
        "weight-zero-at-minus-inf",
        "class weight 0 at a target at -inf",
        make_case([[1.0, 0.0, -INF], B[1]], (2, 1), weight=float32(1.0, 2.0, 0.0)),
        "infinities",
        VALUES,
    ),
    (
        "smoothing-minus-inf",
        "smoothing with another class at -inf",
        make_case([[1.0, 0.0, -INF], B[1]], (0, 2), label_smoothing=0.1),
        "smoothed infinity",
        VALUES,
    ),
    (
        "smoothing-weight-zero-minus-inf",
        "smoothing with another class at -inf that has weight 0",
        make_case(
            [[1.0, 0.0, -INF], B[1]], (0, 1), label_smoothing=0.1, weight=float32(1.0, 2.0, 0.0)
        ),
        "infinities",
        VALUES,
    ),
)
