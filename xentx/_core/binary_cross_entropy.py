"""``binary_cross_entropy``: ``q_1 log(1 + exp(-x)) + q_0 log(1 + exp(x))`` for each element.

Each logit ``x`` is a row with the logits 0 and ``x``. Its target holds the shares ``q_0, q_1`` of
the negative and the positive class on the class axis. There the logits have length 1.
"""

from xentx._core import _distribution, _row_derivatives
from xentx._core._row_derivatives import Arrays, Needs
from xentx._core._softmax import sum_classes
from xentx._core._spec import LossSpec
from xentx._types import Array, Namespace

NAME = "binary_cross_entropy"
IS_ROWWISE = True


def forward(
    xp: Namespace,
    spec: LossSpec,
    logits: Array,
    target: Array,
    weight: None,  # noqa: ARG001 -- the target contains it
) -> tuple[Array, tuple[()]]:
    """Return a loss for each logit in the compute dtype, the class axis kept with length 1."""
    x = xp.astype(logits, spec.precision.compute, copy=False)
    losses, _ = _softplus(xp, spec, x)
    q = xp.astype(target, spec.precision.compute, copy=False)
    return sum_classes(xp, spec, _distribution.times(xp, q, losses)), ()


def _softplus(xp: Namespace, spec: LossSpec, x: Array) -> tuple[Array, Array]:
    """Losses of the negative and of the positive class, and their slopes, without cancellation.

    The argument of the exponential is not positive. It is selected, because the derivative of the
    absolute value at 0 is 0 in autodiff.
    """
    positive = x >= 0.0
    e = xp.exp(xp.where(positive, -x, x))
    tail = xp.log1p(e)
    near, far = 1.0 / (1.0 + e), e / (1.0 + e)
    losses = (tail + xp.where(positive, x, 0.0), tail + xp.where(positive, 0.0, -x))
    slopes = (xp.where(positive, near, far), -xp.where(positive, far, near))
    return xp.concat(losses, axis=spec.axis), xp.concat(slopes, axis=spec.axis)


def _slopes(xp: Namespace, spec: LossSpec, arrays: Arrays, needs: Needs) -> Arrays:
    logits, target, _ = arrays
    x = xp.astype(logits, spec.precision.compute, copy=False)
    losses, slopes = _softplus(xp, spec, x)
    q = xp.astype(target, spec.precision.compute, copy=False)
    return sum_classes(xp, spec, q * slopes), losses if needs[1] else None, None


def pullback(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001
    cotangent: Array,
    needs: Needs = (True, True, True),
) -> Arrays:
    """Return the derivatives with respect to the logits and the shares, pulled back."""
    return _row_derivatives.pullback(xp, spec, arrays, _slopes(xp, spec, arrays, needs), cotangent)


def jvp(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001
    tangents: Arrays,
) -> Array:
    """Return the tangent of each logit's loss."""
    slopes = _slopes(xp, spec, arrays, _row_derivatives.needs_of(tangents))
    return _row_derivatives.jvp(xp, spec, arrays[1], slopes, tangents)
