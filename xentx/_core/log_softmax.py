"""``log_softmax``: ``y_k = x_k - lse``, computed as ``(x_k - max) - log1p(...)``."""

from xentx._core import _softmax
from xentx._core._softmax import MaxSum
from xentx._core._spec import LossSpec
from xentx._types import Array, Namespace

NAME = "log_softmax"
IS_ROWWISE = False


def forward(xp: Namespace, spec: LossSpec, logits: Array) -> tuple[Array, MaxSum]:
    """Return the log-probabilities in the compute dtype, and the row statistics."""
    x = _softmax.capped(xp, spec, logits)
    stats = _softmax.row_stats(xp, spec, x)
    return (x - stats.top) - _softmax.log_tail(xp, spec, stats), stats


def pullback(
    xp: Namespace,
    spec: LossSpec,
    arrays: tuple[Array],
    residuals: tuple[Array, ...],
    cotangent: Array,
    needs: tuple[bool] = (True,),  # noqa: ARG001 -- there is only one gradient
) -> tuple[Array]:
    """``g - p sum(g)``: minus the gradient of a cross-entropy with the target distribution g."""
    (logits,) = arrays
    stats = MaxSum(*residuals)
    x = _softmax.capped(xp, spec, logits)
    _, e = _softmax.exponentials(xp, spec, x, stats.top)
    mass = _softmax.sum_classes(xp, spec, cotangent)
    gradient = -_softmax.softmax_minus(xp, spec, x, e, stats, cotangent, mass)
    return (xp.astype(gradient, logits.dtype, copy=False),)


def jvp(
    xp: Namespace,
    spec: LossSpec,
    arrays: tuple[Array],
    residuals: tuple[Array, ...],
    tangents: tuple[Array],
) -> Array:
    """``v - sum(p v)``, computed relative to the leading entry.

    Frameworks transpose this expression to get the gradient. The transpose is then the expression
    of `pullback`, without cancellation.
    """
    (logits,) = arrays
    stats = MaxSum(*residuals)
    x = _softmax.capped(xp, spec, logits)
    v = xp.astype(tangents[0], spec.precision.compute, copy=False)
    _, e = _softmax.exponentials(xp, spec, x, stats.top)
    leader = _softmax.is_leader(x, stats)
    led = _softmax.sum_classes(xp, spec, xp.where(leader, v, 0.0))
    others = xp.where(leader, 0.0, _softmax.probabilities(e, stats) * v)
    complement = stats.rest / (stats.rest + stats.ties)
    # The mask is that of the maxima, so that the transpose needs no additional sum.
    relative = xp.where(x == stats.top, xp.where(leader, 0.0, v), v - led)
    return relative + complement * led - _softmax.sum_classes(xp, spec, others)
