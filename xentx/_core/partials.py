"""Cross-entropy from blocks of the classes. The states of blocks form a monoid.

`partials` reduces a block of logits to a state, `combine` joins the states of two blocks in any
order, and `finish` computes the loss from the state of all classes. `align` makes a state relative
to a maximum that all blocks share. Then the state of all blocks is the sum of their states. With
``q`` the target distribution, a state is

    top = max x,   ties = how often it occurs,   rest = sum over x_k < top of exp(x_k - top),
    mass = sum q_k,   gaps = sum q_k (top - x_k)

for a block, and the loss of a row is ``mass log1p(rest + ties - 1) + gaps``. If all logits of a
block are -inf, its top is -inf and its sums are 0. If all logits of a row are -inf, the loss is
NaN.
As in `_softmax`, every expression is exactly independent of `top` as a function of the logits, so a
framework may differentiate through it.

`gradient` computes the gradient of the loss in one block from the state of all blocks.
"""

from dataclasses import replace
from typing import Any, Generic, NamedTuple

from xentx._core import _distribution, _pick, _softmax
from xentx._core._softmax import MaxSum
from xentx._core._spec import LossSpec, is_given
from xentx._core.reduction import two_sum
from xentx._types import Array, ArrayT, Namespace


class Partials(NamedTuple, Generic[ArrayT]):
    """The state of a block. Each field has the shape of the rows and a wide dtype.

    Parameters
    ----------
    top, rest, ties : array
        The rows' maxima, and the sums of the exponentials of the logits below them and equal to
        them.
    mass, gaps : array
        The sums of the target distribution, and of its products with the distances to `top`.
    kept : array
        0 for ignored rows, 1 for the others.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> xentx.partials(np.asarray([[1.0, 2.0, 2.0]]), [1], classes=3).ties
    array([2.])
    """

    top: ArrayT
    rest: ArrayT
    ties: ArrayT
    mass: ArrayT
    gaps: ArrayT
    kept: ArrayT


def empty(xp: Namespace, zeros: Array, *others: Array) -> Partials[Array]:
    """Make the state of no classes, the neutral element, from an array of zeros for each field."""
    return Partials(zeros - xp.inf, *others)


def partials(
    xp: Namespace, spec: LossSpec, block: Array, target: Array, weight: Array | None, start: Any = 0
) -> Partials[Array]:
    """Reduce a block of the classes from `start` on. `target` has the class axis too.

    Class indices count from the first class of all. Probabilities and weights are the block's.
    """
    size = block.shape[spec.axis]
    x = _softmax.capped(xp, spec, _distribution.keep_rows(xp, spec, target, block))
    x, spec = _softmax.at_temperature_1(spec, x)
    top = xp.max(x, axis=spec.axis, keepdims=True)
    level = _finite_or_zero(xp, top)
    _, e = _softmax.exponentials(xp, spec, x, level)
    is_top = x == top
    q = _distribution.distribution(xp, spec, target, weight, start, size)
    mass = _sum(xp, spec, q)
    kept = _distribution.kept(spec, target)
    kept = xp.ones_like(mass) if kept is None else xp.astype(kept, mass.dtype)
    state = Partials(
        top=xp.astype(top, spec.precision.accumulate, copy=False),
        rest=_sum(xp, spec, xp.where(is_top, 0.0, e)),
        ties=_sum(xp, spec, xp.where(is_top, e, 0.0)),
        mass=_distribution.no_class_is_nan(xp, spec, target, mass) * kept,
        gaps=_sum(xp, spec, _distribution.times(xp, q, level - x, is_constant=True)) * kept,
        kept=kept,
    )
    return Partials(*(xp.squeeze(field, axis=spec.axis) for field in state))


def align(xp: Namespace, state: Partials[Array], top: Array) -> Partials[Array]:
    """Rebase a state to a maximum, no smaller than its own: that of several blocks.

    The loss does not depend on it, so it may be a constant to whoever differentiates.
    """
    level = _finite_or_zero(xp, top)
    leads = state.top == top
    own = xp.where(state.top == -xp.inf, level, state.top)
    # 1 where it leads, but not as a function of the logits. The rounding error of a distance, up to
    # half a unit in its last place, would be tens of units in its exponential.
    distance, error = two_sum(xp, level, -own)
    scale = xp.exp(-distance) * (1.0 - error)
    return Partials(
        top,
        scale * xp.where(leads, state.rest, state.rest + state.ties),
        scale * xp.where(leads, state.ties, 0.0),
        state.mass,
        state.gaps + state.mass * (level - _finite_or_zero(xp, state.top)),
        state.kept,
    )


def combine(xp: Namespace, a: Partials[Array], b: Partials[Array]) -> Partials[Array]:
    """Join the states of two blocks of the same rows."""
    top = xp.maximum(a.top, b.top)
    a, b = align(xp, a, top), align(xp, b, top)
    return Partials(
        top,
        a.rest + b.rest,
        a.ties + b.ties,
        a.mass + b.mass,
        a.gaps + b.gaps,
        xp.maximum(a.kept, b.kept),
    )


def finish(xp: Namespace, state: Partials[Array], z_loss: Any) -> Array:
    """Return a loss for each row."""
    tail = xp.log1p(state.rest + (state.ties - 1.0))
    loss = state.mass * tail + state.gaps
    if is_given(z_loss):
        if not isinstance(z_loss, float):
            z_loss = xp.astype(z_loss, loss.dtype, copy=False)
        lse = state.top + tail
        loss = loss + z_loss * lse * lse
    nothing = state.top == -xp.inf
    loss = xp.where(nothing, xp.nan, loss)
    return xp.where(state.kept == 0.0, 0.0, loss)


def gradient(
    xp: Namespace,
    spec: LossSpec,
    state: Partials[Array],
    block: Array,
    target: Array,
    weight: Array | None,
    start: Any,
) -> Array:
    """Gradient of each row's loss in a block, from the state of all blocks, in `compute`."""
    compute = spec.precision.compute
    block = _distribution.keep_rows(xp, spec, target, block)
    x = _softmax.capped(xp, spec, block)
    x, scaled = _softmax.at_temperature_1(spec, x)
    whole = Partials(*(xp.expand_dims(field, axis=spec.axis) for field in state))
    tail = xp.astype(xp.log1p(whole.rest + (whole.ties - 1.0)), compute, copy=False)
    top, rest, ties, mass, _, kept = (xp.astype(f, compute, copy=False) for f in whole)
    stats = MaxSum(top, rest, ties)
    _, e = _softmax.exponentials(xp, scaled, x, top)
    size = block.shape[spec.axis]
    q = _distribution.distribution(xp, spec, target, weight, start, size)
    p = _softmax.probabilities(e, stats)
    complement = rest / (rest + ties)
    leader = _softmax.is_leader(x, stats)
    others = mass - q  # exact for one class
    if not _pick.is_one_class(spec):
        # As in softmax_minus: the sum of q without the leader, over this block and the others.
        others = _sum(xp, spec, xp.where(leader, 0.0, q)) + (whole.mass - _sum(xp, spec, q))
        others = xp.astype(others, compute, copy=False)
    slope = xp.where(leader, others - mass * complement, mass * p - q)
    if is_given(spec.z_loss):
        slope = slope + (2.0 * spec.z_loss) * (top + tail) * p
    slope = _softmax.divided(spec, slope)
    if spec.logit_softcap is not None:
        slope = slope * _softmax.cap_slope(xp, spec, block)
    return xp.where(kept == 0.0, 0.0, slope)


def details(
    xp: Namespace, spec: LossSpec, block: Array, target: Array, start: Any, top: Array
) -> tuple[Array, Array, Array]:
    """Return sums of a block from which the rows' entropy and log-probability are computed.

    They are the sums of the exponentials times the gaps, of the target without weights and
    smoothing, and of this target times the gaps. The gaps are the distances to `top`, the maximum
    of all classes.
    """
    x = _softmax.capped(xp, spec, _distribution.keep_rows(xp, spec, target, block))
    x, spec = _softmax.at_temperature_1(spec, x)
    level = xp.expand_dims(_finite_or_zero(xp, top), axis=spec.axis)
    gap, e = _softmax.exponentials(xp, spec, x, xp.astype(level, x.dtype, copy=False))
    bare, size = replace(spec, label_smoothing=0.0), block.shape[spec.axis]
    y = _distribution.distribution(xp, bare, target, None, start, size)
    fields = (
        _sum(xp, spec, _distribution.times(xp, e, gap, is_constant=True)),
        _distribution.no_class_is_nan(xp, spec, target, _sum(xp, spec, y)),
        _sum(xp, spec, _distribution.times(xp, y, gap, is_constant=True)),
    )
    mean, mass, gaps = (xp.squeeze(field, axis=spec.axis) for field in fields)
    return mean, mass, gaps


def lse_log_prob_entropy(
    xp: Namespace, state: Partials[Array], mean: Array, mass: Array, gaps: Array
) -> tuple[Array, Array, Array]:
    """Return these for each row from the state and the `details` of all classes."""
    tail = xp.log1p(state.rest + (state.ties - 1.0))
    fields = state.top + tail, -(mass * tail + gaps), tail + mean / (state.rest + state.ties)
    nothing, ignored = state.top == -xp.inf, state.kept == 0.0
    lse, log_prob, entropy = (
        xp.where(ignored, 0.0, xp.where(nothing, xp.nan, field)) for field in fields
    )
    return lse, log_prob, entropy


def _sum(xp: Namespace, spec: LossSpec, x: Array) -> Array:
    return xp.sum(x, axis=spec.axis, keepdims=True, dtype=spec.precision.accumulate)


def _finite_or_zero(xp: Namespace, top: Array) -> Array:
    return xp.where(top == -xp.inf, 0.0, top)
