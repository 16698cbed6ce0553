"""The one row formula: softmax by its gaps to the maximum, with nothing lost to cancellation.

For a row ``x`` with maximum ``m`` the textbook forms subtract two nearly equal numbers twice:
``lse - x_t`` in the loss and ``p_t - 1`` in the gradient. Both are avoided by keeping the maximum
out of the sum::

    gap_k = m - x_k >= 0,   rest = sum over x_k < m of exp(-gap_k),   ties = how often m occurs
    lse - x_k = log1p(rest + (ties - 1)) + gap_k
    1 - p_max = rest / (rest + ties)                        for a single maximum

A confident row, ``[20, 0]`` with target 0, then has its true loss 2.06e-9 in float32, where
``log_softmax`` followed by a lookup gives 0.

Every expression here is exactly independent of ``m`` as a function of ``x``: that is why ``ties``
is a sum of exponentials (each of them 1) and not a count. Differentiating through ``m`` is then
harmless, and derivatives of any order come out right, at ties too.
"""

from dataclasses import replace
from typing import NamedTuple

from xentx._core._spec import LossSpec, is_scaled
from xentx._types import Array, Namespace


class MaxSum(NamedTuple):
    """What a row is reduced to, its class axis kept with length 1."""

    top: Array
    rest: Array
    ties: Array


def capped(xp: Namespace, spec: LossSpec, logits: Array) -> Array:
    """Logits in the compute dtype, soft-capped to ``c tanh(x / c)`` where that is asked for."""
    x = xp.astype(logits, spec.precision.compute, copy=False)
    if spec.logit_softcap is None:
        return x
    return spec.logit_softcap * xp.tanh(x / spec.logit_softcap)


def cap_slope(xp: Namespace, spec: LossSpec, logits: Array) -> Array:
    """Derivative of `capped`: ``1 - tanh^2``, as ``4 t / (1 + t)^2`` with all its digits."""
    x = xp.astype(logits, spec.precision.compute, copy=False)
    t = xp.exp(-2.0 * xp.abs(x / spec.logit_softcap))
    return 4.0 * t / ((1.0 + t) * (1.0 + t))


def cap_shift(xp: Namespace, spec: LossSpec, logits: Array) -> Array:
    """Derivative of `capped` with respect to the cap ``c``: ``tanh(u) - u (1 - tanh(u)^2)``."""
    u = xp.astype(logits, spec.precision.compute, copy=False) / spec.logit_softcap
    finite = xp.where(xp.isinf(u), 0.0, u)  # the slope is 0 where u is infinite
    return xp.tanh(u) - finite * cap_slope(xp, spec, logits)


def divided(spec: LossSpec, x: Array) -> Array:
    """Divide by the temperature, if there is one."""
    return x / spec.temperature if is_scaled(spec) else x


def at_temperature_1(spec: LossSpec, x: Array) -> tuple[Array, LossSpec]:
    """Divide capped logits by the temperature; return the spec for what results too."""
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
        # Times 1 - low, and not minus e * low, which compilers that flush subnormal numbers lose.
        e = e * (1.0 - xp.where(xp.isfinite(low), low, 0.0))  # not finite where x is not
    return gap, e


def row_stats(xp: Namespace, spec: LossSpec, x: Array) -> MaxSum:
    """Reduce each row. A row that is all -inf, or holds +inf or NaN, has NaN for its statistics."""
    top = xp.max(x, axis=spec.axis, keepdims=True)
    _, e = exponentials(xp, spec, x, top)
    is_top = x == top
    # Exponentials of their own: a compiler would store those that two sums have in common.
    level = divided(spec, xp.where(is_top, x - top, 0.0))
    return MaxSum(
        top,
        sum_classes(xp, spec, xp.where(is_top, 0.0, e)),
        sum_classes(xp, spec, xp.where(is_top, xp.exp(level), 0.0)),
    )


def sum_classes(xp: Namespace, spec: LossSpec, x: Array) -> Array:
    """Sum over the class axis, kept with length 1: accumulated wide, rounded once."""
    total = xp.sum(x, axis=spec.axis, keepdims=True, dtype=spec.precision.accumulate)
    return xp.astype(total, spec.precision.compute, copy=False)


def log_tail(xp: Namespace, spec: LossSpec, stats: MaxSum) -> Array:
    """``lse - max / temperature``, at full relative precision however small it is."""
    # Wide, since it is one number a row and some frameworks' float32 log1p is off by 4 units.
    tail = xp.astype(stats.rest + (stats.ties - 1.0), spec.precision.accumulate, copy=False)
    return xp.astype(xp.log1p(tail), spec.precision.compute, copy=False)


def is_leader(x: Array, stats: MaxSum) -> Array:
    """Entries with a probability above one half, whose complement is the number to compute with."""
    return (x == stats.top) & (stats.ties + stats.rest < 2.0)  # noqa: PLR2004


def probabilities(e: Array, stats: MaxSum) -> Array:
    """Softmax."""
    return e / (stats.rest + stats.ties)


def softmax_minus(
    xp: Namespace, spec: LossSpec, x: Array, e: Array, stats: MaxSum, q: Array, mass: Array
) -> Array:
    """``mass * p - q`` with ``mass`` the row's sum of `q`: the gradient of every loss here.

    A leading entry takes ``(mass - q) - mass (1 - p)``, with ``mass - q`` summed from the other
    entries and ``1 - p = rest / (rest + ties)``: for a confident row each is tiny and exact, where
    ``p`` and ``q / mass`` both round to 1.
    """
    leader = is_leader(x, stats)
    # Read for a leader only. By what a maximum is, it is summed in the pass of the exponentials.
    others = sum_classes(xp, spec, xp.where(x == stats.top, 0.0, q))
    complement = stats.rest / (stats.rest + stats.ties)
    return xp.where(leader, others - mass * complement, mass * probabilities(e, stats) - q)
