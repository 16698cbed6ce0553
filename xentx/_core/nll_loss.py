"""``nll_loss``, one loss a row: ``sum_k q_k (-y_k)`` for log-probabilities ``y``."""

from typing import Any

from xentx._core import _distribution, _rows
from xentx._core._rows import Arrays, Needs
from xentx._core._softmax import sum_classes
from xentx._core._spec import Spec, bound

Array = Any
Namespace = Any

NAME = "nll_loss"
IS_ROWWISE = True


def forward(
    xp: Namespace, spec: Spec, log_probs: Array, target: Array, weight: Array | None
) -> tuple[Array, tuple[()]]:
    """Return a loss for each row in the compute dtype, the class axis kept with length 1."""
    spec = bound(xp, spec, log_probs)
    losses = -_log_probs(xp, spec, log_probs, target)
    q = _distribution.distribution(xp, spec, target, weight)
    is_fixed = _distribution.is_fixed(spec, weight)
    loss = sum_classes(xp, spec, _distribution.times(xp, q, losses, is_constant=is_fixed))
    loss = _distribution.no_class_is_nan(xp, spec, target, loss)
    return _distribution.keep_rows(xp, spec, target, loss), ()


def _log_probs(xp: Namespace, spec: Spec, log_probs: Array, target: Array) -> Array:
    log_probs = xp.astype(log_probs, spec.precision.compute, copy=False)
    return _distribution.keep_rows(xp, spec, target, log_probs)


def _slopes(xp: Namespace, spec: Spec, arrays: Arrays, needs: Needs) -> Arrays:
    log_probs, target, weight = arrays
    spec = bound(xp, spec, log_probs)
    losses = -_log_probs(xp, spec, log_probs, target)
    q = _distribution.distribution(xp, spec, target, weight)
    by_log_probs = _distribution.no_class_is_nan(xp, spec, target, -q)
    return _rows.slopes(xp, spec, arrays, needs, by_log_probs, losses)


def pullback(
    xp: Namespace,
    spec: Spec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001 -- the loss is linear: its arrays say it all
    cotangent: Array,
    needs: Needs = (True, True, True),
) -> Arrays:
    """Return ``-q`` and the derivatives by target and weights, times the rows' cotangents."""
    return _rows.pullback(xp, spec, arrays, _slopes(xp, spec, arrays, needs), cotangent)


def jvp(
    xp: Namespace,
    spec: Spec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001
    tangents: Arrays,
) -> Array:
    """Return the tangent of each row's loss."""
    slopes = _slopes(xp, spec, arrays, _rows.needs_of(tangents))
    return _rows.jvp(xp, spec, arrays[1], slopes, tangents)
