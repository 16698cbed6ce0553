"""The fields of `RowStats` besides the loss.

As functions of the logits, the expressions are exactly independent of the maximum. A framework can
differentiate them to any order.
"""

from dataclasses import replace
from typing import NamedTuple

from xentx._core import _distribution, _pick, _softmax
from xentx._core._spec import LossSpec, bound
from xentx._types import Array, Namespace

# The number of fields of RowStats with derivatives, which come first. The loss is one of them.
REAL_FIELDS = 4


class _Rows(NamedTuple):
    """What a row has whatever its target, the class axis kept with length 1.

    Parameters
    ----------
    gap
        How far each logit is below the largest: the only field with all classes.
    tail
        How far the lse is above the largest logit.
    lse, entropy, best
        The log-sum-exp, the entropy and the class of the largest logit.
    """

    gap: Array
    tail: Array
    lse: Array
    entropy: Array
    best: Array


def _rows(xp: Namespace, spec: LossSpec, logits: Array) -> _Rows:
    x = _softmax.capped(xp, spec, logits)
    stats = _softmax.row_stats(xp, spec, x)
    tail = _softmax.log_tail(xp, spec, stats)
    gap, e = _softmax.exponentials(xp, spec, x, stats.top)
    lse = _softmax.divided(spec, stats.top) + tail
    mean_gap = _softmax.sum_classes(xp, spec, _distribution.times(xp, e, gap, is_constant=True))
    entropy = tail + mean_gap / (stats.rest + stats.ties)
    best = xp.argmax(logits, axis=spec.axis, keepdims=True)
    return _Rows(gap, tail, lse, entropy, best)


def forward(
    xp: Namespace, spec: LossSpec, logits: Array, target: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Return lse, log-probability, entropy, whether the prediction is right, and the prediction.

    Each has the shape of the rows. For an ignored row all are 0 or False.
    """
    spec = bound(xp, spec, logits)
    kept = _distribution.keep_rows(xp, spec, target, logits)
    gap, tail, lse, entropy, best = _rows(xp, spec, kept)  # best is 0 where a row is ignored

    bare = replace(spec, label_smoothing=0.0)
    y = _distribution.distribution(xp, bare, target, None)
    mass = _softmax.sum_classes(xp, spec, y)
    shares = _distribution.times(xp, y, gap, is_constant=not spec.soft)
    gaps = _softmax.sum_classes(xp, spec, shares)
    log_prob = _distribution.no_class_is_nan(xp, spec, target, -(mass * tail + gaps))

    wanted = xp.argmax(target, axis=spec.axis, keepdims=True) if spec.soft else target
    correct = xp.astype(best, wanted.dtype) == wanted
    keep = _distribution.kept(spec, target)
    if keep is not None:
        correct = correct & keep
    lse, log_prob, entropy = (
        _distribution.keep_rows(xp, spec, target, field) for field in (lse, log_prob, entropy)
    )
    lse, log_prob, entropy, correct, prediction = (
        xp.squeeze(field, axis=spec.axis) for field in (lse, log_prob, entropy, correct, best)
    )
    return lse, log_prob, entropy, correct, prediction


def of_several(
    xp: Namespace, spec: LossSpec, logits: Array, target: Array
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return the loss and the same fields, for several class indices for each row.

    The indices are on the class axis. The loss, the log-probability and `correct` have them on the
    last axis. Each index can be ignored. A row is ignored if all of its indices are.
    """
    spec = bound(xp, spec, logits)
    keep = _distribution.kept(spec, target)
    if keep is not None:
        row = xp.any(keep, axis=spec.axis, keepdims=True)
        logits = xp.where(row, logits, 0.0)
    gap, tail, lse, entropy, best = _rows(xp, spec, logits)
    loss = tail + _gathered(xp, spec, target, gap)
    # Not 0 - log_prob: TensorFlow's graph optimiser makes -0 of 0 in it.
    loss, log_prob = (
        _distribution.no_class_is_nan(
            xp, spec, target, _distribution.keep_rows(xp, spec, target, field)
        )
        for field in (loss, -loss)
    )
    correct = xp.astype(best, target.dtype) == target
    if keep is not None:
        correct = correct & keep
        lse, entropy = (xp.where(row, field, 0.0) for field in (lse, entropy))
    lse, entropy, best = (xp.squeeze(field, axis=spec.axis) for field in (lse, entropy, best))
    loss, log_prob, correct = (
        xp.moveaxis(field, spec.axis, -1) for field in (loss, log_prob, correct)
    )
    return loss, lse, log_prob, entropy, correct, best


def _gathered(xp: Namespace, spec: LossSpec, target: Array, values: Array) -> Array:
    """Take each row's values at its classes."""
    if _pick.gathers(xp, values, (spec.axis,)):
        return _pick.picked(xp, spec, target, values)
    where = (slice(None),) * spec.axis
    columns = (target[(*where, slice(i, i + 1), ...)] for i in range(target.shape[spec.axis]))
    return xp.concat(
        [_pick.selected(xp, spec, column, values) for column in columns], axis=spec.axis
    )
