"""Cross-entropy of a class index without smoothing: ``w_t (lse - x_t)``.

The target alone is kept out of the sum of exponentials. With a row's shift ``r``, its target ``t``
and ``e_k = exp(x_k - r)``::

    rest = sum over k != t of e_k,   own = e_t
    lse - x_t = log1p(rest / own)
    p_k - [k = t] = (-rest if k = t else e_k) / (rest + own)

Nothing cancels: a confident row has a small ``rest``, with all its digits, and each row of the
gradient is one select and one product.

Every expression is exactly independent of ``r`` as a function of the logits. `floor` makes ``r``
constant in pieces, so that autodiff has nothing to do for it, and a multiple of the unit in the
last place of every logit that matters.
"""

from typing import NamedTuple

from xentx._core import _distribution, _pick, _softmax
from xentx._core._row_derivatives import Arrays, Needs
from xentx._core._spec import LossSpec, is_given, is_scaled
from xentx._types import Array, Namespace

# Where `own` is a smaller share of `rest`, the loss is the sum of a logarithm and a distance.
_LARGEST_RATIO = 1e15


class TargetSum(NamedTuple):
    """What a row is reduced to, its class axis kept with length 1."""

    shift: Array
    rest: Array
    own: Array


def forward(
    xp: Namespace, spec: LossSpec, logits: Array, target: Array, weight: Array | None
) -> tuple[Array, TargetSum]:
    """Return a loss for each row in the compute dtype, and what its derivatives start from."""
    logits = _distribution.keep_rows(xp, spec, target, logits)
    x = _softmax.capped(xp, spec, logits)
    top = xp.max(x, axis=spec.axis, keepdims=True)
    shift = top if is_scaled(spec) else xp.floor(top)
    hit = _distribution.hits(xp, spec, target)
    others = xp.where(hit, 0.0, _exponentials(xp, spec, x, shift))
    rest = _softmax.sum_classes(xp, spec, others)
    x_t = _target_logits(xp, spec, logits, target)
    stats = TargetSum(shift, rest, _exponentials(xp, spec, x_t, shift))
    loss = _losses(xp, spec, x_t, stats)
    if weight is not None:
        w = _pick.picked_weight(xp, spec, target, weight)
        loss = _distribution.times(xp, w, loss, is_constant=spec.final)
    if is_given(spec.z_loss):
        lse = _lse(xp, spec, stats)
        loss = loss + spec.z_loss * lse * lse
    loss = _distribution.no_class_is_nan(xp, spec, target, loss)
    return _distribution.keep_rows(xp, spec, target, loss), stats


def slopes(
    xp: Namespace, static: LossSpec, spec: LossSpec, arrays: Arrays, stats: TargetSum, needs: Needs
) -> Arrays:
    """Slopes of each row's loss: its gradients for a cotangent of 1."""
    logits, target, weight, *_ = arrays
    logits = _distribution.keep_rows(xp, spec, target, logits)
    x = _softmax.capped(xp, spec, logits)
    hit = _distribution.hits(xp, spec, target)
    # As in `forward`, for a compiler to see that it is the same.
    others = xp.where(hit, 0.0, _exponentials(xp, spec, x, stats.shift))
    factor = _distribution.no_class_is_nan(xp, spec, target, 1.0 / (stats.rest + stats.own))
    by_scaled = xp.where(hit, -stats.rest, others) * factor
    if weight is not None:
        by_scaled = _pick.picked_weight(xp, spec, target, weight) * by_scaled
    lse = _lse(xp, spec, stats)
    if is_given(spec.z_loss):
        by_scaled = by_scaled + (2.0 * spec.z_loss) * lse * (xp.where(hit, stats.own, others) * factor)
    by_logits = by_capped = _softmax.divided(spec, by_scaled)
    if spec.logit_softcap is not None:
        by_logits = by_capped * _softmax.cap_slope(xp, spec, logits)
    by_weight = None
    if needs[2] and weight is not None:
        losses = _losses(xp, spec, _target_logits(xp, spec, logits, target), stats)
        by_weight = xp.where(hit, losses, 0.0)

    def by_option(name: str) -> Array:
        if name == "z_loss":
            return lse * lse
        if name == "logit_softcap":
            return _softmax.sum_classes(xp, spec, by_capped * _softmax.cap_shift(xp, spec, logits))
        # The sum of by_scaled is that of the z-loss: 0 but for rounding without it.
        gaps = _distribution.times(xp, by_scaled, _softmax.divided(spec, stats.shift - x))
        total = (2.0 * spec.z_loss) * lse * _softmax.divided(spec, stats.shift)
        return (_softmax.sum_classes(xp, spec, gaps) - total) / spec.temperature

    by_options = (
        by_option(name) if needed else None
        for name, needed in zip(static.operands, needs[3:], strict=True)
    )
    return by_logits, None, by_weight, *by_options


def _exponentials(xp: Namespace, spec: LossSpec, x: Array, shift: Array) -> Array:
    """``exp((x - shift) / temperature)``, without the rounding error of the difference.

    Up to half a unit in its last place, it would grow to tens of units in the exponential.
    """
    difference = x - shift
    e = xp.exp(_softmax.divided(spec, difference))
    if not spec.precision.recover:
        return e
    if is_scaled(spec):
        back = difference - x  # Knuth's TwoSum
        low = (x - (difference - back)) - (shift + back)
    else:
        low = x - (difference + shift)  # Dekker's: what is far below the shift has e = 0
    low = xp.where(xp.isfinite(low), _softmax.divided(spec, low), 0.0)  # not finite where x is not
    return e * (1.0 + low)


def _target_logits(xp: Namespace, spec: LossSpec, logits: Array, target: Array) -> Array:
    return _softmax.capped(xp, spec, _pick.picked(xp, spec, target, logits))


def _losses(xp: Namespace, spec: LossSpec, x_t: Array, stats: TargetSum) -> Array:
    """``lse - x_t / temperature``, at full relative precision however small it is."""
    # Wide, since it is one number a row and some frameworks' float32 log1p is off by 4 units.
    wide = spec.precision.accumulate
    x_t, shift, rest, own = (xp.astype(v, wide, copy=False) for v in (x_t, *stats))
    is_near = rest < _LARGEST_RATIO * own
    near = xp.log1p(rest / xp.where(is_near, own, 1.0))
    far = xp.log(rest + own) + _softmax.divided(spec, shift - x_t)
    return xp.astype(xp.where(is_near, near, far), spec.precision.compute, copy=False)


def _lse(xp: Namespace, spec: LossSpec, stats: TargetSum) -> Array:
    return _softmax.divided(spec, stats.shift) + xp.log(stats.rest + stats.own)
