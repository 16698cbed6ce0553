"""The formula of a row: softmax from the gaps to the maximum, without cancellation.

For a row ``x`` with maximum ``m`` the textbook forms subtract two nearly equal numbers twice:
``lse - x_t`` in the loss and ``p_t - 1`` in the gradient. Both are avoided by leaving the maximum
out of the sum::

    gap_k = m - x_k >= 0,   rest = sum over x_k < m of exp(-gap_k),   ties = how often m occurs
    lse - x_k = log1p(rest + (ties - 1)) + gap_k
    1 - p_max = rest / (rest + ties)                        for a single maximum

For the confident row ``[20, 0]`` with target 0, this gives the true loss 2.06e-9 in float32, and
``log_softmax`` followed by a lookup gives 0.

Every expression here is exactly independent of ``m`` as a function of ``x``. Therefore ``ties`` is
a sum of exponentials (each of them 1) and not a count. A framework may differentiate through ``m``,
and derivatives of any order are correct, also at ties.
"""

from dataclasses import replace
from typing import NamedTuple

from xentx._core._spec import LossSpec, is_scaled
from xentx._types import Array, Namespace


class MaxSum(NamedTuple):
    """The numbers that a row is reduced to. The class axis is kept with length 1."""

    top: Array
    rest: Array
    ties: Array


def capped(xp: Namespace, spec: LossSpec, logits: Array) -> Array:
    """Logits in the compute dtype, soft-capped to ``c tanh(x / c)`` if there is a cap."""
    x = xp.astype(logits, spec.precision.compute, copy=False)
    if spec.logit_softcap is None:
        return x
    return spec.logit_softcap * xp.tanh(x / spec.logit_softcap)


def cap_slope(xp: Namespace, spec: LossSpec, logits: Array) -> Array:
    """Derivative of `capped`: ``1 - tanh^2``, as ``4 t / (1 + t)^2``, which does not cancel."""
    x = xp.astype(logits, spec.precision.compute, copy=False)
    t = xp.exp(-2.0 * xp.abs(x / spec.logit_softcap))
    return 4.0 * t / ((1.0 + t) * (1.0 + t))


def cap_shift(xp: Namespace, spec: LossSpec, logits: Array) -> Array:
    """Derivative of `capped` with respect to the cap ``c``: ``tanh(u) - u (1 - tanh(u)^2)``."""
    u = xp.astype(logits, spec.precision.compute, copy=False) / spec.logit_softcap
    finite = xp.where(xp.isinf(u), 0.0, u)  # the slope is 0 if u is infinite
    return xp.tanh(u) - finite * cap_slope(xp, spec, logits)


def divided(spec: LossSpec, x: Array) -> Array:
    """Divide by the temperature, if there is one."""
    return x / spec.temperature if is_scaled(spec) else x


def at_temperature_1(spec: LossSpec, x: Array) -> tuple[Array, LossSpec]:
    """Divide capped logits by the temperature. Return them with a spec of temperature 1."""
    return divided(spec, x), replace(spec, temperature=1.0)


def exponentials(xp: Namespace, spec: LossSpec, x: Array, top: Array) -> tuple[Array, Array]:
    """Gaps ``(top - x) / temperature`` and their exponentials ``exp(-gap)``.

    The rounding error of a gap, up to half a unit in its last place, grows to tens of units in
    its exponential. Knuth's TwoSum recovers it exactly, and one multiplication applies it.
    """
    difference = top - x
    gap = divided(spec, difference)
    e = xp.exp(-gap)
    if spec.precision.recover:
        back = difference - top
        low = divided(spec, (top - (difference - back)) - (x + back))
        # e - e * low would be wrong with compilers that flush subnormal numbers to 0.
        e = e * (1.0 - xp.where(xp.isfinite(low), low, 0.0))  # it is not finite if x is not
    return gap, e


def row_stats(xp: Namespace, spec: LossSpec, x: Array) -> MaxSum:
    """Reduce each row. The result is NaN for a row with +inf or NaN, or with only -inf."""
    top = xp.max(x, axis=spec.axis, keepdims=True)
    _, e = exponentials(xp, spec, x, top)
    is_top = x == top
    # Separate exponentials: a compiler would store those that two sums share.
    level = divided(spec, xp.where(is_top, x - top, 0.0))
    return MaxSum(
        top,
        sum_classes(xp, spec, xp.where(is_top, 0.0, e)),
        sum_classes(xp, spec, xp.where(is_top, xp.exp(level), 0.0)),
    )


def sum_classes(xp: Namespace, spec: LossSpec, x: Array) -> Array:
    """Sum over the class axis, kept with length 1: accumulated in a wide dtype, rounded once."""
    total = xp.sum(x, axis=spec.axis, keepdims=True, dtype=spec.precision.accumulate)
    return xp.astype(total, spec.precision.compute, copy=False)


def log_tail(xp: Namespace, spec: LossSpec, stats: MaxSum) -> Array:
    """``lse - max / temperature``, with full relative precision for any size."""
    # In a wide dtype: it is one number per row, and some float32 log1p have errors of 4 units.
    tail = xp.astype(stats.rest + (stats.ties - 1.0), spec.precision.accumulate, copy=False)
    return xp.astype(xp.log1p(tail), spec.precision.compute, copy=False)


def is_leader(x: Array, stats: MaxSum) -> Array:
    """Entries with a probability above one half. They are computed from the complement."""
    return (x == stats.top) & (stats.ties + stats.rest < 2.0)  # noqa: PLR2004


def probabilities(e: Array, stats: MaxSum) -> Array:
    """Softmax."""
    return e / (stats.rest + stats.ties)


def softmax_minus(
    xp: Namespace, spec: LossSpec, x: Array, e: Array, stats: MaxSum, q: Array, mass: Array
) -> Array:
    """``mass * p - q`` with ``mass`` the row's sum of `q`: the gradient of every loss here.

    A leading entry is ``(mass - q) - mass (1 - p)``, with ``mass - q`` summed from the other
    entries and ``1 - p = rest / (rest + ties)``. For a confident row, ``p`` and ``q / mass`` both
    round to 1, and these two terms keep full precision.
    """
    leader = is_leader(x, stats)
    # Used for a leader only. The mask is that of the maxima, so that a compiler computes this sum
    # in the same pass as the exponentials.
    others = sum_classes(xp, spec, xp.where(x == stats.top, 0.0, q))
    complement = stats.rest / (stats.rest + stats.ties)
    return xp.where(leader, others - mass * complement, mass * probabilities(e, stats) - q)
