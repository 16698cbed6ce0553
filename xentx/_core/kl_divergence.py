"""``kl_divergence``: how far apart two softmax distributions are, one number a row.

With ``p`` the softmax of the logits, ``q`` that of the reference logits, both at the temperature,
and ``KL(a || b) = sum_k a_k (log a_k - log b_k)``::

    beta = 0    KL(q || p)
    beta = 1    KL(p || q)
    between     beta KL(q || m) + (1 - beta) KL(p || m),   m = beta q + (1 - beta) p

The terms of that sum have both signs, and cancel where the distributions are nearly equal. But both
distributions sum to 1, so that ``b_k - a_k`` may be added to each term. With ``r = log a - log b``
it becomes ``a (r + exp(-r) - 1)``, which is never negative, and is about ``a r^2 / 2`` where r is
small. The log-ratios are formed from differences of the logits, not from logarithms of
probabilities, so that they keep their digits where the logits differ by little, and where a
probability has underflowed.
"""

import math
from typing import NamedTuple

from xentx._core import _row_derivatives, _softmax
from xentx._core._distribution import times
from xentx._core._row_derivatives import Arrays, Needs
from xentx._core._softmax import sum_classes
from xentx._core._spec import LossSpec, bound
from xentx._core.reduction import two_sum
from xentx._types import Array, Namespace

NAME = "kl_divergence"
IS_ROWWISE = True

# Exponents up to which a sum of exponentials is in the range of float32, and the sum less 1 above
# which its logarithm is taken by log1p.
_LARGEST, _LEAST = 60.0, -0.5
# Log-ratios below which exp(-r) - 1 + r is a series, and how many of its terms count.
_SMALL = 0.5
_TERMS = {"float32": 9, "float64": 15}
# exp(-r) is 0 in every dtype from here on.
_NOTHING = 800.0


class _Pair(NamedTuple):
    """Both distributions, and ``log q - log p``."""

    p: Array
    q: Array
    ratio: Array
    gaps: tuple[Array, Array]


def _pair(xp: Namespace, spec: LossSpec, logits: Array, reference: Array) -> _Pair:
    compute = spec.precision.compute
    x, y = (xp.astype(array, compute, copy=False) for array in (logits, reference))
    of_x, of_y = (_softmax.row_stats(xp, spec, array) for array in (x, y))
    gap_x, e_x = _softmax.exponentials(xp, spec, x, of_x.top)
    gap_y, e_y = _softmax.exponentials(xp, spec, y, of_y.top)
    p, q = _softmax.probabilities(e_x, of_x), _softmax.probabilities(e_y, of_y)

    # Differences relative to that of a likely class. A common shift of the logits has no effect on
    # the result.
    nowhere = (x == -math.inf) & (y == -math.inf)
    difference = _softmax.divided(spec, xp.where(nowhere, 0.0, y - x))
    likely = xp.where(x == of_x.top, difference, -math.inf)
    anchor = xp.max(likely, axis=spec.axis, keepdims=True)
    anchor = xp.where(xp.isfinite(anchor), anchor, 0.0)
    relative = difference - anchor
    if spec.precision.recover:
        # The rounding errors of the differences, which are large if there is a large common shift.
        _, lost = two_sum(xp, y, xp.where(nowhere, -y, -x))
        lost = _softmax.divided(spec, lost)
        of_anchor = xp.where((x == of_x.top) & (difference == anchor), lost, -math.inf)
        of_anchor = xp.max(of_anchor, axis=spec.axis, keepdims=True)
        relative = relative + (lost - xp.where(xp.isfinite(of_anchor), of_anchor, 0.0))

    # log sum_k p_k exp(relative_k), relative to sum_k p_k = 1. If an exponential is large, it is
    # computed from the reference logits.
    moderate = relative <= 1.0
    behind = xp.where(x == of_x.top, gap_y, math.inf)
    ahead = xp.min(behind, axis=spec.axis, keepdims=True) - gap_y
    fits = moderate | (ahead <= _LARGEST)
    large = xp.exp(xp.where(moderate | ~fits, 0.0, ahead)) / (of_x.rest + of_x.ties) - p
    growth = xp.where(moderate, p * xp.expm1(xp.where(moderate, relative, 0.0)), large)
    growth = sum_classes(xp, spec, xp.where(nowhere, 0.0, growth))
    too_far = xp.astype(~fits, compute, copy=False)
    near = (sum_classes(xp, spec, too_far) == 0.0) & (growth > _LEAST)
    tails = _softmax.log_tail(xp, spec, of_y) - _softmax.log_tail(xp, spec, of_x)
    apart = _softmax.divided(spec, of_y.top - of_x.top) + tails - anchor
    shift = xp.where(near, xp.log1p(xp.where(near, growth, 0.0)), apart)
    return _Pair(p, q, xp.where(nowhere, 0.0 * shift, relative - shift), (gap_x, gap_y))


def _excess(xp: Namespace, spec: LossSpec, a: Array, b: Array, ratio: Array) -> Array:
    """Terms of ``KL(a || b)``, none of them negative, with ``ratio = log a - log b``."""
    small = (ratio < _SMALL) & (ratio > -_SMALL)
    r = xp.where(small, ratio, 0.0)
    name = "float64" if spec.precision.compute == xp.float64 else "float32"
    series = xp.zeros_like(r)
    for n in range(_TERMS[name] + 1, 1, -1):
        series = series * -r + 1.0 / math.factorial(n)
    above = ratio > 0.0
    # For the larger probability, with factors that are not negative.
    down = xp.where(above, 0.0, xp.where(ratio < -_NOTHING, -_NOTHING, ratio))
    large = times(xp, a, xp.expm1(xp.where(above, -ratio, 0.0)) + xp.where(above, ratio, 0.0))
    lesser = b * (1.0 + (down - 1.0) * xp.exp(down))
    return xp.where(small, a * (r * r * series), xp.where(above, large, lesser))


def _by_mixture(xp: Namespace, spec: LossSpec, pair: _Pair) -> tuple[Array, Array, Array]:
    """``log q - log m``, ``log p - log m`` and ``m``."""
    beta, ratio = spec.beta, pair.ratio
    above = ratio >= 0.0
    # The smaller probability relative to the larger one, so that nothing overflows.
    lesser = xp.expm1(xp.where(above, -ratio, ratio))
    log = xp.log1p(xp.where(above, xp.full_like(lesser, 1.0 - beta), beta) * lesser)
    return (
        xp.where(above, -log, ratio - log),
        xp.where(above, -ratio - log, -log),
        beta * pair.q + (1.0 - beta) * pair.p,
    )


def _divergences(xp: Namespace, spec: LossSpec, pair: _Pair) -> Array:
    """Terms of the divergence."""
    if spec.beta == 0.0:
        return _excess(xp, spec, pair.q, pair.p, pair.ratio)
    if spec.beta == 1.0:
        return _excess(xp, spec, pair.p, pair.q, -pair.ratio)
    by_q, by_p, m = _by_mixture(xp, spec, pair)
    first = _excess(xp, spec, pair.q, m, by_q)
    return spec.beta * first + (1.0 - spec.beta) * _excess(xp, spec, pair.p, m, by_p)


def forward(
    xp: Namespace,
    spec: LossSpec,
    logits: Array,
    reference: Array,
    weight: None,  # noqa: ARG001 -- there are no class weights
    *options: Array,
) -> tuple[Array, tuple[()]]:
    """Return a divergence for each row in the compute dtype, the class axis kept with length 1."""
    spec = bound(xp, spec, logits, options)
    pair = _pair(xp, spec, logits, reference)
    return sum_classes(xp, spec, _divergences(xp, spec, pair)), ()


def _centred(xp: Namespace, spec: LossSpec, a: Array, ratio: Array) -> Array:
    """``a (ratio - sum_k a_k ratio_k)``: the derivative with respect to the logits of a.

    The ratios are taken relative to that of a likely class, whose term of the sum is then 0. If
    that class has nearly all of the probability, its ratio and the sum would cancel.
    """
    likely = xp.where(a == xp.max(a, axis=spec.axis, keepdims=True), ratio, -math.inf)
    relative = ratio - xp.max(likely, axis=spec.axis, keepdims=True)
    mean = sum_classes(xp, spec, times(xp, a, relative))
    return times(xp, a, relative - mean)


def _slopes(xp: Namespace, static: LossSpec, arrays: Arrays, needs: Needs | None) -> Arrays:
    logits, reference, _, *options = arrays
    needs = (True,) * len(arrays) if needs is None else needs
    spec = bound(xp, static, logits, options)
    pair = _pair(xp, spec, logits, reference)
    p, q, ratio, gaps = pair
    others = needs[1] or any(needs[3:])
    by_reference = None
    if spec.beta in (0.0, 1.0):
        above = ratio >= 0.0
        # p - q, with full precision if both are nearly equal.
        apart = xp.where(above, q, -p) * xp.expm1(xp.where(above, -ratio, ratio))
        if spec.beta == 0.0:
            by_logits = apart
            by_reference = _centred(xp, spec, q, ratio) if others else None
        else:
            by_logits = _centred(xp, spec, p, -ratio)
            by_reference = -apart
    else:
        by_q, by_p, _ = _by_mixture(xp, spec, pair)
        by_logits = (1.0 - spec.beta) * _centred(xp, spec, p, by_p)
        by_reference = spec.beta * _centred(xp, spec, q, by_q) if others else None
    by_options: list[Array | None] = [None] * len(options)
    if any(needs[3:]):  # the temperature: each row of slopes sums to 0
        terms = times(xp, by_logits, gaps[0]) + times(xp, by_reference, gaps[1])
        by_options = [sum_classes(xp, spec, terms) / spec.temperature]
    by_logits = _softmax.divided(spec, by_logits)
    if needs[1]:
        by_reference = _softmax.divided(spec, by_reference)
    return by_logits, by_reference if needs[1] else None, None, *by_options


def pullback(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001
    cotangent: Array,
    needs: Needs | None = None,
) -> Arrays:
    """Return the derivatives with respect to both logits and the temperature, pulled back."""
    return _row_derivatives.pullback(xp, spec, arrays, _slopes(xp, spec, arrays, needs), cotangent)


def jvp(
    xp: Namespace,
    spec: LossSpec,
    arrays: Arrays,
    residuals: tuple[()],  # noqa: ARG001
    tangents: Arrays,
) -> Array:
    """Return the tangent of each row's divergence."""
    slopes = _slopes(xp, spec, arrays, _row_derivatives.needs_of(tangents))
    return _row_derivatives.jvp(xp, spec, arrays[1], slopes, tangents)
