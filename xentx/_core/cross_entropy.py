"""``cross_entropy``, one loss per row: ``sum_k q_k (lse - x_k) + z lse^2``.

With ``A = sum_k q_k`` and the gaps and the ``log1p`` of `_softmax`, the sum is
``A log1p(...) + sum_k q_k gap_k``. For ``q >= 0`` no term is negative, so nothing cancels. Class
indices are computed by `_class_index`, in fewer operations.
"""

from xentx._core import _class_index, _distribution, _row_derivatives, _softmax
from xentx._core._class_index import TargetSum
from xentx._core._row_derivatives import Arrays, Needs
from xentx._core._softmax import MaxSum
from xentx._core._spec import LossSpec, bound, is_given
from xentx._types import Array, Namespace

NAME = "cross_entropy"
IS_ROWWISE = True


def forward(
    xp: Namespace,
    spec: LossSpec,
    logits: Array,
    target: Array,
    weight: Array | None,
    *options: Array,
) -> tuple[Array, MaxSum | TargetSum]:
    """Return a loss for each row in the compute dtype, the class axis kept with length 1.

    `options` are the options of the spec that are arrays: 0-d, in the compute dtype.
    """
    spec = bound(xp, spec, logits, options)
    if not spec.soft:
        return _class_index.forward(xp, spec, logits, target, weight)
    x = _softmax.capped(xp, spec, _distribution.keep_rows(xp, spec, target, logits))
    stats = _softmax.row_stats(xp, spec, x)
    tail = _softmax.log_tail(xp, spec, stats)
    q = _distribution.distribution(xp, spec, target, weight)
    mass = _softmax.sum_classes(xp, spec, q)
    gap = _softmax.divided(spec, stats.top - x)
    shares = _distribution.times(xp, q, gap)
    gaps = _softmax.sum_classes(xp, spec, shares)
    loss = mass * tail + gaps
    if is_given(spec.z_loss):
        lse = _softmax.divided(spec, stats.top) + tail
        loss = loss + spec.z_loss * lse * lse
    return _distribution.keep_rows(xp, spec, target, loss), stats


def _slopes(
    xp: Namespace,
    static: LossSpec,
    arrays: Arrays,
    residuals: tuple[Array, ...],
    needs: Needs | None,
) -> Arrays:
    logits, target, weight, *options = arrays
    needs = (True,) * len(arrays) if needs is None else needs
    spec = bound(xp, static, logits, options)
    if not spec.soft:
        return _class_index.slopes(xp, static, spec, arrays, TargetSum(*residuals), needs)
    stats = MaxSum(*residuals)
    logits = _distribution.keep_rows(xp, spec, target, logits)
    x = _softmax.capped(xp, spec, logits)
    gap, e = _softmax.exponentials(xp, spec, x, stats.top)
    tail = _softmax.log_tail(xp, spec, stats)
    top = _softmax.divided(spec, stats.top)
    lse = top + tail
    q = _distribution.distribution(xp, spec, target, weight)
    mass = _softmax.sum_classes(xp, spec, q)
    by_scaled = _softmax.softmax_minus(xp, spec, x, e, stats, q, mass)
    if is_given(spec.z_loss):
        by_scaled = by_scaled + (2.0 * spec.z_loss) * lse * _softmax.probabilities(e, stats)
    by_logits = by_capped = _softmax.divided(spec, by_scaled)
    if spec.logit_softcap is not None:
        by_logits = by_capped * _softmax.cap_slope(xp, spec, logits)

    def by_option(name: str) -> Array:
        if name == "z_loss":
            return lse * lse
        if name == "logit_softcap":
            return _softmax.sum_classes(xp, spec, by_capped * _softmax.cap_shift(xp, spec, logits))
        if name == "temperature":
            # The sum of by_scaled is that of the z-loss. Without a z-loss it is 0 up to rounding.
            total = (2.0 * spec.z_loss) * lse
            gaps = _softmax.sum_classes(xp, spec, _distribution.times(xp, by_scaled, gap))
            return (gaps - total * top) / spec.temperature
        slope = _distribution.smoothing_slope(xp, spec, target, weight)
        return _softmax.sum_classes(xp, spec, _distribution.times(xp, slope, tail + gap))

    by_options = (
        by_option(name) if needed else None
        for name, needed in zip(static.operands, needs[3:], strict=True)
    )
    slopes = _row_derivatives.slopes(
        xp, spec, (logits, target, weight), needs, by_logits, tail + gap
    )
    return *slopes, *by_options


def pullback(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[Array, ...],
    cotangent: Array,
    needs: Needs | None = None,
) -> Arrays:
    """Return ``A p - q`` and the derivatives with respect to the other arrays, pulled back."""
    slopes = _slopes(xp, spec, arrays, residuals, needs)
    return _row_derivatives.pullback(xp, spec, arrays, slopes, cotangent)


def jvp(
    xp: Namespace, spec: LossSpec, arrays: Arrays, residuals: tuple[Array, ...], tangents: Arrays
) -> Array:
    """Return the tangent of each row's loss."""
    slopes = _slopes(xp, spec, arrays, residuals, _row_derivatives.needs_of(tangents))
    return _row_derivatives.jvp(xp, spec, arrays[1], slopes, tangents)
