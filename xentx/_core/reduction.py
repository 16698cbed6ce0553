"""Reductions of the rows' losses: ``none``, ``sum``, ``mean``, ``weighted_mean``.

Frameworks with autodiff differentiate these expressions. `pullback` is for the others. Sums are
accumulated in a wide dtype and rounded once, so that a float16 mean does not overflow.
"""

import math
from dataclasses import replace

from xentx._core._distribution import keep_rows, kept, times
from xentx._core._pick import gathers, mass
from xentx._core._spec import LossSpec
from xentx._types import Array, Namespace


def two_sum(xp: Namespace, a: Array, b: Array) -> tuple[Array, Array]:
    """Return a sum and its exact rounding error (Knuth's TwoSum). The error is 0 if not finite."""
    s = a + b
    back = s - a
    error = (a - (s - back)) + (b - back)
    return s, xp.where(xp.isfinite(error), error, 0.0)


def total(xp: Namespace, spec: LossSpec, rows: Array) -> Array:
    """Sum of all entries, in the dtype `accumulate`."""
    if not spec.precision.compensate:
        return xp.sum(rows, dtype=spec.precision.accumulate)
    if hasattr(xp, "compensated_sum"):  # for a namespace that does not support slices
        return xp.compensated_sum(rows)
    # Without float64: a pairwise sum, and the sum of its rounding errors.
    high = xp.reshape(rows, (math.prod(rows.shape),))
    if high.shape[0] == 0:
        return xp.sum(high)
    low = xp.zeros_like(high)
    while high.shape[0] > 1:
        half = high.shape[0] // 2
        a, b = high[:half], high[half : 2 * half]
        s, error = two_sum(xp, a, b)
        rest = low[:half] + low[half : 2 * half]
        high = xp.concat([s, high[2 * half :]])
        low = xp.concat([rest + error, low[2 * half :]])
    return high[0] + low[0]


def divisor(
    xp: Namespace,
    spec: LossSpec,
    reduction: str,
    target: Array,
    weight: Array | None,
    sample_weight: Array | None,
) -> Array:
    """Divisor of a mean: the sum of the amounts of the rows that are not ignored.

    In "mean", the amount of a row is ``w[t]`` for an integer target and 1 for a soft target, as in
    PyTorch. In "weighted_mean", it is ``sum_k q_k`` for both. Sample weights multiply it.
    """
    if reduction == "weighted_mean":
        amount = mass(xp, spec, target, weight)
    elif weight is not None and not spec.soft:
        amount = mass(xp, replace(spec, label_smoothing=0.0), target, weight)
    elif sample_weight is None:
        return _count(xp, spec, target)
    else:
        rows = _one_class(xp, spec, target) if spec.soft else target
        amount = xp.ones_like(rows, dtype=spec.precision.compute)
    if sample_weight is not None:
        amount = amount * sample_weight
    return total(xp, spec, keep_rows(xp, spec, target, amount))


def _count(xp: Namespace, spec: LossSpec, target: Array) -> Array:
    """Number of rows that are not ignored, counted in integers."""
    keep = kept(spec, target)
    if keep is None:
        keep = xp.ones_like(_one_class(xp, spec, target) if spec.soft else target, dtype=xp.bool)
    wide = xp.int64 if spec.precision.accumulate == xp.float64 else xp.int32
    return xp.astype(xp.sum(xp.astype(keep, wide)), spec.precision.accumulate)


def _one_class(xp: Namespace, spec: LossSpec, target: Array) -> Array:
    """Return an array with the shape of the rows: a slice, or a sum if slices are not possible."""
    if not gathers(xp, target, (spec.axis,)):
        return xp.sum(target, axis=spec.axis, keepdims=True)
    return target[(slice(None),) * spec.axis + (slice(1), ...)]


def forward(
    xp: Namespace,
    spec: LossSpec,
    rows: Array,
    sample_weight: Array | None,
    reduction: str,
    divisor: Array | None,
) -> Array:
    """Reduce the rows' losses. The mean of no rows is NaN, and its gradient is exactly 0."""
    if sample_weight is not None:
        rows = times(xp, sample_weight, rows)
    if reduction == "none":
        return xp.squeeze(rows, axis=spec.axis)
    value = total(xp, spec, rows)
    if divisor is not None:
        empty = divisor == 0.0
        value = xp.where(empty, xp.nan, value / xp.where(empty, 1.0, divisor))
    return xp.astype(value, spec.precision.compute, copy=False)


def pullback(
    xp: Namespace,
    spec: LossSpec,
    cotangent: Array,
    sample_weight: Array | None,
    reduction: str,
    divisor: Array | None,
) -> Array:
    """Return the cotangent of the rows, which broadcasts against the logits."""
    scale = cotangent
    if reduction == "none":
        scale = xp.expand_dims(scale, axis=spec.axis)
    elif divisor is not None:
        empty = divisor == 0.0
        scale = xp.astype(scale, spec.precision.accumulate, copy=False)
        scale = xp.where(empty, 0.0, scale / xp.where(empty, 1.0, divisor))
    scale = xp.astype(scale, spec.precision.compute, copy=False)
    return scale if sample_weight is None else scale * sample_weight
