"""The fields of `RowStats` besides the loss.

As functions of the logits, the expressions are exactly independent of the maximum. A framework can
differentiate them to any order.
"""

from dataclasses import replace

from xentx._core import _distribution, _softmax
from xentx._core._spec import LossSpec, bound
from xentx._types import Array, Namespace

# The number of fields of RowStats with derivatives, which come first. The loss is one of them.
REAL_FIELDS = 4


def forward(
    xp: Namespace, spec: LossSpec, logits: Array, target: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Return lse, log-probability, entropy, whether the prediction is right, and the prediction.

    Each has the shape of the rows. For an ignored row all are 0 or False.
    """
    spec = bound(xp, spec, logits)
    kept = _distribution.keep_rows(xp, spec, target, logits)
    x = _softmax.capped(xp, spec, kept)
    stats = _softmax.row_stats(xp, spec, x)
    tail = _softmax.log_tail(xp, spec, stats)
    gap, e = _softmax.exponentials(xp, spec, x, stats.top)
    lse = _softmax.divided(spec, stats.top) + tail

    bare = replace(spec, label_smoothing=0.0)
    y = _distribution.distribution(xp, bare, target, None)
    mass = _softmax.sum_classes(xp, spec, y)
    shares = _distribution.times(xp, y, gap, is_constant=not spec.soft)
    gaps = _softmax.sum_classes(xp, spec, shares)
    log_prob = _distribution.no_class_is_nan(xp, spec, target, -(mass * tail + gaps))

    mean_gap = _softmax.sum_classes(xp, spec, _distribution.times(xp, e, gap, is_constant=True))
    entropy = tail + mean_gap / (stats.rest + stats.ties)

    best = xp.argmax(kept, axis=spec.axis, keepdims=True)  # 0 for an ignored row
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
