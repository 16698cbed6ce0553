"""``cross_entropy``, one loss a row: ``sum_k q_k (lse - x_k) + z lse^2``.

With ``A = sum_k q_k`` and the gaps and the ``log1p`` of `_softmax`, the sum is
``A log1p(...) + sum_k q_k gap_k``: for ``q >= 0`` a sum of terms that are never negative, so that
nothing cancels.
"""

from typing import Any

from xentx._core import _distribution, _rows, _softmax
from xentx._core._rows import ALL, Needs, Triple
from xentx._core._softmax import RowStats
from xentx._core._spec import Spec

Array = Any
Namespace = Any

NAME = "cross_entropy"
IS_ROWWISE = True


def forward(
    xp: Namespace, spec: Spec, logits: Array, target: Array, weight: Array | None
) -> tuple[Array, RowStats]:
    """Return a loss for each row in the compute dtype, the class axis kept with length 1."""
    x = _softmax.capped(xp, spec, _distribution.keep_rows(xp, spec, target, logits))
    stats = _softmax.row_stats(xp, spec, x)
    tail = _softmax.log_tail(xp, spec, stats)
    q = _distribution.distribution(xp, spec, target, weight)
    mass = _softmax.sum_classes(xp, spec, q)
    gaps = _softmax.sum_classes(xp, spec, _distribution.times(xp, q, stats.top - x))
    loss = mass * tail + gaps
    if spec.z_loss:
        lse = stats.top + tail
        loss = loss + spec.z_loss * (lse * lse)
    loss = _distribution.no_class_is_nan(xp, spec, target, loss)
    return _distribution.keep_rows(xp, spec, target, loss), stats


def _slopes(xp: Namespace, spec: Spec, arrays: Triple, stats: RowStats, needs: Needs) -> Triple:
    logits, target, weight = arrays
    logits = _distribution.keep_rows(xp, spec, target, logits)
    x = _softmax.capped(xp, spec, logits)
    gap, e = _softmax.exponentials(xp, spec, x, stats.top)
    tail = _softmax.log_tail(xp, spec, stats)
    q = _distribution.distribution(xp, spec, target, weight)
    mass = _softmax.sum_classes(xp, spec, q)
    mass = _distribution.no_class_is_nan(xp, spec, target, mass)
    by_logits = _softmax.softmax_minus(xp, spec, x, e, stats, q, mass)
    if spec.z_loss:
        lse = stats.top + tail
        by_logits = by_logits + (2.0 * spec.z_loss) * lse * _softmax.probabilities(e, stats)
    if spec.logit_softcap is not None:
        by_logits = by_logits * _softmax.cap_slope(xp, spec, logits)
    return _rows.slopes(xp, spec, arrays, needs, by_logits, tail + gap)


def pullback(
    xp: Namespace,
    spec: Spec,
    arrays: Triple,
    residuals: tuple[Array, ...],
    cotangent: Array,
    needs: Needs = ALL,
) -> Triple:
    """Return ``A p - q`` and the derivatives by target and weights, times the rows' cotangents."""
    slopes = _slopes(xp, spec, arrays, RowStats(*residuals), needs)
    return _rows.pullback(xp, spec, arrays, slopes, cotangent)


def jvp(
    xp: Namespace, spec: Spec, arrays: Triple, residuals: tuple[Array, ...], tangents: Triple
) -> Array:
    """Return the tangent of each row's loss."""
    slopes = _slopes(xp, spec, arrays, RowStats(*residuals), _rows.needs_of(tangents))
    return _rows.jvp(xp, spec, arrays[1], slopes, tangents)
