"""Cross-entropy of a class index, smoothed or not: ``(1 - s) w_t L_t + (s / C) sum_k w_k L_k``.

``L_k = lse - x_k``. Only the target is left out of the sum of exponentials. With a row's maximum
``m``, its target ``t`` and ``e_k = exp(x_k - m)``::

    rest = sum over k != t of e_k,   own = e_t
    L_t = log1p(rest / own),   L_k = (lse - m) + (m - x_k)
    p_k - [k = t] = (-rest if k = t else e_k) / (rest + own)

Nothing cancels: the ``rest`` of a confident row is small and has full relative precision. Each row
of the gradient is one select and one division. As in `_softmax`, every expression is exactly
independent of ``m`` as a function of the logits.
"""

from typing import NamedTuple

from xentx._core import _distribution, _pick, _softmax
from xentx._core._row_derivatives import Arrays, Needs
from xentx._core._spec import LossSpec, is_given
from xentx._types import Array, Namespace

# If `rest / own` is larger, the loss is computed as the sum of a logarithm and a gap.
_LARGEST_RATIO = 1e15


class TargetSum(NamedTuple):
    """The numbers that a row is reduced to. The class axis is kept with length 1."""

    top: Array
    rest: Array
    own: Array


def forward(
    xp: Namespace, spec: LossSpec, logits: Array, target: Array, weight: Array | None
) -> tuple[Array, TargetSum]:
    """Return a loss for each row in the compute dtype, and the residuals for its derivatives."""
    # Gathered from the given logits. Otherwise a compiler would store the result of `keep_rows`.
    x_t = _target_logits(xp, spec, logits, target)
    logits = _distribution.keep_rows(xp, spec, target, logits)
    x = _softmax.capped(xp, spec, logits)
    # The cap is monotone, so the maximum can be capped instead of the logits.
    top = _softmax.capped(xp, spec, xp.max(logits, axis=spec.axis, keepdims=True))
    gap, e = _softmax.exponentials(xp, spec, x, top)
    others = xp.where(_distribution.hits(xp, spec, target), 0.0, e)
    rest = _softmax.sum_classes(xp, spec, others)
    gap_t, own = _softmax.exponentials(xp, spec, x_t, top)
    stats = TargetSum(top, rest, own)
    loss = _losses(xp, spec, stats, gap_t)
    if weight is not None:
        w = _pick.picked_weight(xp, spec, target, weight)
        loss = _distribution.times(xp, w, loss, is_constant=spec.final)
    if is_given(spec.label_smoothing):
        share = spec.label_smoothing
        if isinstance(share, float):
            share = xp.full_like(loss, share)
        all_classes = _mean_of_classes(xp, spec, weight, stats, gap)
        smoothed = _distribution.times(xp, share, all_classes, is_constant=spec.final)
        loss = _distribution.times(xp, 1.0 - share, loss, is_constant=spec.final) + smoothed
    if is_given(spec.z_loss):
        lse = _lse(xp, spec, stats)
        loss = loss + spec.z_loss * lse * lse
    loss = _distribution.no_class_is_nan(xp, spec, target, loss)
    return _distribution.keep_rows(xp, spec, target, loss), stats


def slopes(
    xp: Namespace, static: LossSpec, spec: LossSpec, arrays: Arrays, stats: TargetSum, needs: Needs
) -> Arrays:
    """Slopes of each row's loss: the gradients for a cotangent of 1."""
    given, target, weight, *_ = arrays
    logits = _distribution.keep_rows(xp, spec, target, given)
    x = _softmax.capped(xp, spec, logits)
    hit = _distribution.hits(xp, spec, target)
    # The same expression as in `forward`, so that a compiler computes it once.
    gap, e = _softmax.exponentials(xp, spec, x, stats.top)
    others = xp.where(hit, 0.0, e)
    total = _distribution.no_class_is_nan(xp, spec, target, stats.rest + stats.own)
    w_t = None if weight is None else _pick.picked_weight(xp, spec, target, weight)
    by_scaled = _softmax_minus(xp, spec, weight, w_t, stats, (hit, others, total))
    lse = _lse(xp, spec, stats)
    if is_given(spec.z_loss):
        p = xp.where(hit, stats.own, others) / total
        by_scaled = by_scaled + (2.0 * spec.z_loss) * lse * p
    by_logits = by_capped = _softmax.divided(spec, by_scaled)
    if spec.logit_softcap is not None:
        by_logits = by_capped * _softmax.cap_slope(xp, spec, logits)

    def losses() -> Array:
        gap_t = _softmax.divided(spec, stats.top - _target_logits(xp, spec, given, target))
        return _losses(xp, spec, stats, gap_t)

    by_weight = None
    if needs[2] and weight is not None:
        q = _distribution.distribution(xp, spec, target, None)
        by_weight = _distribution.times(xp, q, xp.where(hit, losses(), _tail(xp, stats) + gap))

    def by_option(name: str) -> Array:
        if name == "label_smoothing":
            own = losses() if w_t is None else _distribution.times(xp, w_t, losses())
            return _mean_of_classes(xp, spec, weight, stats, gap) - own
        if name == "z_loss":
            return lse * lse
        if name == "logit_softcap":
            return _softmax.sum_classes(xp, spec, by_capped * _softmax.cap_shift(xp, spec, logits))
        # The sum of by_scaled is that of the z-loss. Without a z-loss it is 0 up to rounding.
        gaps = _distribution.times(xp, by_scaled, gap)
        of_top = (2.0 * spec.z_loss) * lse * _softmax.divided(spec, stats.top)
        return (_softmax.sum_classes(xp, spec, gaps) - of_top) / spec.temperature

    by_options = (
        by_option(name) if needed else None
        for name, needed in zip(static.operands, needs[3:], strict=True)
    )
    return by_logits, None, by_weight, *by_options


def _target_logits(xp: Namespace, spec: LossSpec, logits: Array, target: Array) -> Array:
    return _softmax.capped(xp, spec, _pick.picked(xp, spec, target, logits))


def _losses(xp: Namespace, spec: LossSpec, stats: TargetSum, gap_t: Array) -> Array:
    """``lse - x_t / temperature``, with full relative precision for any size."""
    # In a wide dtype: it is one number per row, and some float32 log1p have errors of 4 units.
    wide = spec.precision.accumulate
    gap_t, rest, own = (xp.astype(v, wide, copy=False) for v in (gap_t, stats.rest, stats.own))
    is_near = rest < _LARGEST_RATIO * own
    near = xp.log1p(rest / xp.where(is_near, own, 1.0))
    far = xp.log(rest + own) + gap_t
    return xp.astype(xp.where(is_near, near, far), spec.precision.compute, copy=False)


def _lse(xp: Namespace, spec: LossSpec, stats: TargetSum) -> Array:
    return _softmax.divided(spec, stats.top) + _tail(xp, stats)


def _tail(xp: Namespace, stats: TargetSum) -> Array:
    """``lse - m / temperature``, to which the gaps of the classes are added."""
    return xp.log(stats.rest + stats.own)


def _weights(
    xp: Namespace, spec: LossSpec, weight: Array | None, w_t: Array | None
) -> tuple[Array, Array, Array]:
    """Class weights, that of the target, and the sum of all. Without weights, each class has 1."""
    if weight is None:
        one = xp.ones((), dtype=spec.precision.compute)
        return one, one, _distribution.count(xp, spec, spec.precision.compute) * one
    return weight, w_t, _softmax.sum_classes(xp, spec, weight)


def _softmax_minus(
    xp: Namespace,
    spec: LossSpec,
    weight: Array | None,
    w_t: Array | None,
    stats: TargetSum,
    parts: tuple[Array, Array, Array],
) -> Array:
    """``A p - q`` with ``A`` the sum of ``q``, from the classes' hits, exponentials and their sum.

    The target's entry is computed from 1 - p if p is above one half, and from p otherwise.
    """
    hit, others, total = parts
    if not is_given(spec.label_smoothing):
        slope = xp.where(hit, -stats.rest, others) / total
        return slope if weight is None else w_t * slope
    w, w_t, whole = _weights(xp, spec, weight, w_t)
    share = spec.label_smoothing / _distribution.count(xp, spec, spec.precision.compute)
    q_t = (1.0 - spec.label_smoothing + share) * w_t
    mass = (1.0 - spec.label_smoothing) * w_t + share * whole
    below = mass * (stats.own / total) - q_t
    above = share * (whole - w_t) - mass * (stats.rest / total)
    at_target = xp.where(stats.own > stats.rest, above, below)
    return xp.where(hit, at_target, mass * (others / total) - share * w)


def _mean_of_classes(
    xp: Namespace, spec: LossSpec, weight: Array | None, stats: TargetSum, gap: Array
) -> Array:
    """``sum_k w_k L_k / C``. The terms are divided before the sum, to avoid overflow."""
    count = _distribution.count(xp, spec, spec.precision.compute)
    *_, whole = _weights(xp, spec, weight, None)
    if weight is None:
        shares = gap / count
    else:
        shares = _distribution.times(xp, weight / count, gap, is_constant=spec.final)
    return whole / count * _tail(xp, stats) + _softmax.sum_classes(xp, spec, shares)
