"""``nll_loss``, one loss per row: ``sum_k q_k (-y_k)`` for log-probabilities ``y``.

For an integer target it is ``-w_t y_t``. Only this number of the row is read, and only one entry of
its gradient is written.
"""

from xentx._core import _distribution, _pick, _row_derivatives
from xentx._core._row_derivatives import Arrays, Needs
from xentx._core._softmax import sum_classes
from xentx._core._spec import LossSpec, bound
from xentx._types import Array, Namespace

NAME = "nll_loss"
IS_ROWWISE = True


def forward(
    xp: Namespace, spec: LossSpec, log_probs: Array, target: Array, weight: Array | None
) -> tuple[Array, tuple[()]]:
    """Return a loss for each row in the compute dtype, the class axis kept with length 1."""
    spec = bound(xp, spec, log_probs)
    if spec.soft:
        losses = -xp.astype(log_probs, spec.precision.compute, copy=False)
        q = _distribution.distribution(xp, spec, target, weight)
        shares = _distribution.times(xp, q, losses, is_constant=spec.final)
        return sum_classes(xp, spec, shares), ()
    loss = _picked_losses(xp, spec, log_probs, target)
    if weight is not None:
        w = _pick.picked_weight(xp, spec, target, weight)
        loss = _distribution.times(xp, w, loss, is_constant=spec.final)
    return _distribution.no_class_is_nan(xp, spec, target, loss), ()


def _picked_losses(xp: Namespace, spec: LossSpec, log_probs: Array, target: Array) -> Array:
    picked = _pick.picked(xp, spec, target, log_probs)
    picked = xp.astype(picked, spec.precision.compute, copy=False)
    # The negative of 0 is -0. TensorFlow's graph optimiser replaces 0 - x by it.
    return xp.where(picked == 0.0, 0.0, -picked)


def _soft_slopes(xp: Namespace, spec: LossSpec, arrays: Arrays, needs: Needs) -> Arrays:
    log_probs, target, weight = arrays
    losses = -xp.astype(log_probs, spec.precision.compute, copy=False)
    by_log_probs = -_distribution.distribution(xp, spec, target, weight)
    return _row_derivatives.slopes(xp, spec, arrays, needs, by_log_probs, losses)


def _slope(xp: Namespace, spec: LossSpec, target: Array, weight: Array | None) -> Array:
    """Derivative of each row's loss with respect to its log-probability. NaN for a bad index."""
    if weight is None:
        slope = xp.full_like(target, -1.0, dtype=spec.precision.compute)
    else:
        slope = 0.0 - _pick.picked_weight(xp, spec, target, weight)
    return _distribution.no_class_is_nan(xp, spec, target, slope)


def pullback(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001 -- the loss is linear and has no residuals
    cotangent: Array,
    needs: Needs = (True, True, True),
) -> Arrays:
    """Return the derivatives with respect to the log-probabilities, target and weights."""
    log_probs, target, weight = arrays
    spec = bound(xp, spec, log_probs)
    if spec.soft:
        slopes = _soft_slopes(xp, spec, arrays, needs)
        return _row_derivatives.pullback(xp, spec, arrays, slopes, cotangent)
    cotangent = _distribution.keep_rows(xp, spec, target, cotangent)
    rows = xp.astype(cotangent * _slope(xp, spec, target, weight), log_probs.dtype, copy=False)
    gradient = _pick.placed(xp, spec, target, rows, log_probs, wrong=True)
    weight_gradient = None
    if needs[2] and weight is not None:
        losses = _picked_losses(xp, spec, log_probs, target)
        shares = _distribution.along(xp, cotangent, losses)
        shares = _pick.placed(xp, spec, target, shares, log_probs)
        weight_gradient = _row_derivatives.total_of_rows(xp, spec, shares, weight.dtype)
    return gradient, None, weight_gradient


def jvp(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001
    tangents: Arrays,
) -> Array:
    """Return the tangent of each row's loss."""
    log_probs, target, weight = arrays
    spec = bound(xp, spec, log_probs)
    if spec.soft:
        slopes = _soft_slopes(xp, spec, arrays, _row_derivatives.needs_of(tangents))
        return _row_derivatives.jvp(xp, spec, target, slopes, tangents)
    # Selected instead of gathered, because a compiler can fuse the transpose of a selection.
    terms = []
    if tangents[0] is not None:
        tangent = xp.astype(tangents[0], spec.precision.compute, copy=False)
        tangent = _pick.selected(xp, spec, target, tangent, wrong=True)
        terms.append(_slope(xp, spec, target, weight) * tangent)
    if tangents[2] is not None:
        tangent = xp.astype(tangents[2], spec.precision.compute, copy=False)
        tangent = _pick.selected(xp, spec, target, tangent)
        losses = _picked_losses(xp, spec, log_probs, target)
        terms.append(_distribution.along(xp, tangent, losses))
    return _distribution.keep_rows(xp, spec, target, sum(terms[1:], start=terms[0]))
