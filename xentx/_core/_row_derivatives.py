"""Derivatives of the losses with one value per row, computed from the slopes.

The slope of a row's loss is its gradient for a cotangent of 1. The pullback multiplies it by the
row's cotangent. The jvp is the sum of its products with the tangents, and the transpose of this jvp
is the pullback.

Arrays, slopes, gradients and tangents have the same order: the logits (or log-probabilities), the
target, the class weights, and the options that are arrays. An entry is None if it is not given or
not needed.
"""

from typing import Any

from xentx._core._distribution import along, distribution, keep_rows, target_slope, times
from xentx._core._softmax import sum_classes
from xentx._core._spec import LossSpec
from xentx._types import Array, Namespace

Arrays = tuple[Array, ...]
Needs = tuple[bool, ...]


def slopes(
    xp: Namespace, spec: LossSpec, arrays: Arrays, needs: Needs, by_logits: Array, losses: Array
) -> Arrays:
    """Complete the slopes of a row's loss ``sum_k q_k losses_k``, which is linear in q."""
    _, target, weight = arrays
    by_target = by_weight = None
    if needs[1] and spec.soft:
        by_target = times(xp, target_slope(xp, spec, weight), losses)
    if needs[2] and weight is not None:
        by_weight = times(xp, distribution(xp, spec, target, None), losses)
    return by_logits, by_target, by_weight


def pullback(
    xp: Namespace, spec: LossSpec, arrays: Arrays, slopes: Arrays, cotangent: Array
) -> Arrays:
    """Pull the rows' cotangents back to the arrays, each in its own dtype."""
    logits, target, weight, *options = arrays
    by_logits, by_target, by_weight, *by_options = slopes
    cotangent = keep_rows(xp, spec, target, cotangent)
    gradient = xp.astype(cotangent * by_logits, logits.dtype, copy=False)
    target_gradient = weight_gradient = None
    if by_target is not None:
        target_gradient = xp.astype(along(xp, cotangent, by_target), target.dtype, copy=False)
    if by_weight is not None:
        shares = along(xp, cotangent, by_weight)
        weight_gradient = total_of_rows(xp, spec, shares, weight.dtype)
    everything = tuple(range(gradient.ndim))

    def by_option(slope: Array, option: Array) -> Array:
        return _total(xp, spec, along(xp, cotangent, slope), everything, option.dtype)

    option_gradients = (
        None if slope is None else by_option(slope, option)
        for slope, option in zip(by_options, options, strict=True)
    )
    return gradient, target_gradient, weight_gradient, *option_gradients


def total_of_rows(xp: Namespace, spec: LossSpec, shares: Array, dtype: Any) -> Array:
    """Sum over the rows."""
    rows = tuple(d for d in range(shares.ndim) if d != spec.axis)
    return _total(xp, spec, shares, rows, dtype)


def _total(
    xp: Namespace, spec: LossSpec, shares: Array, axes: tuple[int, ...], dtype: Any
) -> Array:
    """Sum over axes. They are kept, unless all axes are summed."""
    some = len(axes) < shares.ndim
    total = xp.sum(shares, axis=axes, keepdims=some, dtype=spec.precision.accumulate)
    return xp.astype(total, dtype, copy=False)


def jvp(xp: Namespace, spec: LossSpec, target: Array, slopes: Arrays, tangents: Arrays) -> Array:
    """Tangent of each row's loss."""
    tangents = tuple(
        None if slope is None or tangent is None else xp.astype(tangent, spec.precision.compute)
        for slope, tangent in zip(slopes, tangents, strict=True)
    )
    terms = [] if tangents[0] is None else [slopes[0] * tangents[0]]  # this slope is finite
    for slope, tangent in zip(slopes[1:], tangents[1:], strict=True):
        if tangent is not None:
            terms.append(along(xp, tangent, slope))
    terms = [sum_classes(xp, spec, term) for term in terms]
    return keep_rows(xp, spec, target, sum(terms[1:], start=terms[0]))


def needs_of(tangents: Arrays) -> Needs:
    """Return which slopes a jvp needs."""
    return tuple(tangent is not None for tangent in tangents)
