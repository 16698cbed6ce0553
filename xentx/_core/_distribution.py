"""The target distribution ``q``, which combines target, class weights and smoothing.

Integer target ``t``:  ``q_k = (1 - s) w_t [k = t] + (s / C) w_k``
Soft target ``y``:     ``q_k = w_k ((1 - s) y_k + s / C)``
"""

from dataclasses import replace
from typing import Any

from xentx._core._spec import LossSpec, is_given
from xentx._types import Array, Namespace


def distribution(
    xp: Namespace,
    spec: LossSpec,
    target: Array,
    weight: Array | None,
    start: Any = 0,
    size: int | None = None,
) -> Array:
    """``q``, in the shape of the logits, or for a block of `size` classes from `start` on.

    Probabilities and weights are those of the block. Class indices count from the first class of
    all blocks.
    """
    dtype = spec.precision.compute
    share = spec.label_smoothing / count(xp, spec, dtype)
    if spec.soft:
        q = xp.astype(target, dtype, copy=False)
        if is_given(spec.label_smoothing):
            q = (1.0 - spec.label_smoothing) * q + share
        return q if weight is None else weight * q
    # A comparison instead of a gather also works for sharded classes.
    if not isinstance(start, int):
        start = xp.astype(start, target.dtype)
    hit = hits(xp, spec, target - start, size)
    if weight is None:
        weight = xp.ones((), dtype=dtype)
    q = xp.where(hit, (1.0 - spec.label_smoothing) * weight, 0.0)
    return q + share * weight if is_given(spec.label_smoothing) else q


def hits(xp: Namespace, spec: LossSpec, target: Array, size: int | None = None) -> Array:
    """Mark the class of each row's index, among `size` classes from 0 on."""
    shape = [1] * target.ndim
    shape[spec.axis] = -1
    size = spec.classes if size is None else size
    index = xp.arange(size, dtype=target.dtype, device=spec.device)
    return xp.reshape(index, tuple(shape)) == target


def count(xp: Namespace, spec: LossSpec, dtype: Any) -> Any:
    """Return the number of classes. If it is an array in the LossSpec, it is cast to `dtype`."""
    return xp.astype(spec.classes, dtype) if hasattr(spec.classes, "ndim") else spec.classes


def target_slope(xp: Namespace, spec: LossSpec, weight: Array | None) -> Array:
    """Derivative of ``q_k`` with respect to ``y_k`` of a soft target."""
    weight = xp.ones((), dtype=spec.precision.compute) if weight is None else weight
    return (1.0 - spec.label_smoothing) * weight


def smoothing_slope(xp: Namespace, spec: LossSpec, target: Array, weight: Array | None) -> Array:
    """Derivative of ``q`` with respect to the label smoothing, in which it is linear."""
    all_smooth, none_smooth = (
        distribution(xp, replace(spec, label_smoothing=end), target, weight) for end in (1.0, 0.0)
    )
    return all_smooth - none_smooth


def kept(spec: LossSpec, target: Array) -> Array | None:
    """Mark the rows that are not ignored. None if no rows can be ignored."""
    return None if spec.ignore_index is None else target != spec.ignore_index


def keep_rows(xp: Namespace, spec: LossSpec, target: Array, values: Array) -> Array:
    """Replace ignored rows by 0, whatever they hold: selected, since 0 * NaN is NaN.

    Done to the logits first of all, so that no NaN of an ignored row enters a derivative of any
    order, and to each row's loss and cotangent, which makes them exactly 0.
    """
    keep = kept(spec, target)
    return values if keep is None else xp.where(keep, values, 0.0)


def no_class_is_nan(xp: Namespace, spec: LossSpec, target: Array, values: Array) -> Array:
    """Make NaN the rows whose integer target is no class: never wrapped, never clamped.

    Where its value can be seen, such a target has already raised an IndexError. This is for
    compilers that trace.
    """
    right = allowed(xp, spec, target)
    return values if right is None else xp.where(right, values, xp.nan)


def allowed(xp: Namespace, spec: LossSpec, target: Array) -> Array | None:
    """Mark the rows whose target is a class, or ignored; None where all are known to be."""
    if spec.soft or spec.checked:
        return None
    right = _is_class(xp, spec, target)
    return right if spec.ignore_index is None else right | (target == spec.ignore_index)


def counted(xp: Namespace, spec: LossSpec, target: Array) -> Array | None:
    """Mark the rows whose target is a class, and not ignored; None where all are known to be."""
    keep = kept(spec, target)
    if spec.checked:
        return keep
    right = _is_class(xp, spec, target)
    return right if keep is None else right & keep


def _is_class(xp: Namespace, spec: LossSpec, target: Array) -> Array:
    return (target >= 0) & (target < count(xp, spec, target.dtype))


def times(xp: Namespace, q: Array, x: Array, *, is_constant: bool = False) -> Array:
    """``q x`` where 0 times infinity is 0.

    The derivative with respect to q is x where x is infinite too: a tangent or cotangent of 0 is
    then 0, any other is infinite. With `is_constant` nobody differentiates with respect to q.
    """
    nothing = (q == 0.0) & xp.isinf(x)
    product = q * xp.where(nothing, 0.0, x)
    return product if is_constant else xp.where(nothing, _overflowing(xp, q, x), product)


def along(xp: Namespace, tangent: Array, slope: Array) -> Array:
    """``tangent slope`` where 0 times infinity is 0, in operations that are linear in `tangent`."""
    infinite = xp.isinf(slope)
    product = tangent * xp.where(infinite, 0.0, slope)
    return xp.where(infinite, _overflowing(xp, tangent, slope), product)


def _overflowing(xp: Namespace, x: Array, infinity: Array) -> Array:
    """``x infinity``: 0 for 0, else infinite. So are its derivatives with respect to x.

    As products with the largest finite number, of which three make the least subnormal number
    infinite. Autodiff repeats them with a tangent or a cotangent in the place of x. A namespace
    whose compiler would join the products has a function ``times_infinity`` of its own.
    """
    if hasattr(xp, "times_infinity"):
        return xp.times_infinity(x, infinity)
    largest = xp.full_like(infinity, float(xp.finfo(infinity.dtype).max))
    factor = xp.where(infinity > 0.0, largest, -largest)
    return ((x * factor) * factor) * factor
