"""The true loss and gradient, by separate formulas in extended precision.

This module does not use xentx's core, so that tests against it are independent. The significand of
NumPy's longdouble has 64 bits on x86-64 and 113 on 64-bit ARM under Linux, and that of float64 has
53. tests/compare/test_truth.py compares the results with mpmath.

For a row ``x`` whose largest logit is ``m`` the loss of class ``t`` is

    lse(x) - x_t = (m - x_t) + log1p(sum of exp(x_j - m) over all j but that of m)

in which nothing cancels, also for confident rows. The gradient of a class whose probability is
above one half is computed from the sum of the others' probabilities.

Each number has a scale: the sum of the magnitudes of its terms. If every term has a rounding error
of one unit, the error of the sum is at most one unit of the scale.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xentx._types import Array

LONG = np.longdouble
PRECISION = int(np.finfo(LONG).nmant) + 1
"""Bits of the significand of the true values."""


@dataclass(frozen=True)
class Truth:
    """A loss and the gradient of its sum with respect to the logits, with the scale of each."""

    value: Array
    gradient: Array
    value_scale: Array
    gradient_scale: Array


def one_hot(target: Array, classes: int) -> Array:
    """Rows of zeros for indices that are no class."""
    return (target[..., None] == np.arange(classes)).astype(LONG)


def log_softmax(x: Array) -> tuple[Array, Array, Array]:
    """Last-axis ``(lse - x, p, 1 - p)``, each without cancellation."""
    top = x.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # -inf alone, or +inf: NaN
        gap = np.where(np.isfinite(top), top - x, LONG("nan"))
    e = np.exp(-gap)
    leader = np.arange(x.shape[-1]) == x.argmax(-1)[..., None]
    rest = np.where(leader, 0, e).sum(-1, keepdims=True)
    p = e / (1 + rest)
    others = np.where(leader, rest / (1 + rest), 1 - p)
    return gap + np.log1p(rest), p, others


def times(a: Array, b: Array) -> Array:
    """Product in which 0 times infinity is 0."""
    with np.errstate(invalid="ignore"):
        return np.where((a == 0) & np.isinf(b), 0, a * b)


def softcap(x: Array, cap: LONG) -> tuple[Array, Array, Array]:
    """``cap tanh(x / cap)``, its slope, and what multiplies a rounding error in that."""
    u = x / cap
    t = np.exp(-2 * np.abs(u))
    # An error of one unit of u is a relative error of 2 u units of the slope.
    return cap * np.tanh(u), 4 * t / (1 + t) ** 2, 1 + 2 * np.where(t > 0, np.abs(u), 0)


@np.errstate(all="ignore")
def cross_entropy(  # noqa: PLR0915 -- a formula is read from top to bottom
    logits: Array,
    target: Array,
    *,
    axis: int = -1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    cotangent: Array | None = None,
    log_probs: bool = False,
) -> Truth:
    """Cross-entropy as `xentx.cross_entropy` defines it, its gradient, and the scale of each.

    A class that doesn't exist makes its row NaN.

    Parameters
    ----------
    logits
        Finite or not, in any shape.
    target
        Integers in the shape of `logits` without the class axis, or floats in its full shape.
    cotangent
        What the gradient is multiplied by; ones if None.
    log_probs
        Whether `logits` are log-probabilities, whose loss is that of `xentx.nll_loss`.

    Examples
    --------
    >>> truth = cross_entropy(np.asarray([[20.0, 0.0]]), np.asarray([0]))
    >>> f"{float(truth.value):.6e}"
    '2.061154e-09'
    """
    x = np.moveaxis(np.asarray(logits).astype(LONG), axis, -1)
    classes = x.shape[-1]
    slope, wobble = LONG(1), LONG(1)
    if logit_softcap is not None:
        x, slope, wobble = softcap(x, LONG(logit_softcap))
    x, slope = x / LONG(temperature), slope / LONG(temperature)
    smoothing, z = LONG(label_smoothing), LONG(z_loss)
    soft = target.ndim == x.ndim
    y = np.moveaxis(target.astype(LONG), axis, -1) if soft else one_hot(target, classes)
    w = np.ones(classes, LONG) if weight is None else weight.astype(LONG)
    s = np.ones(x.shape[:-1], LONG) if sample_weight is None else sample_weight.astype(LONG)
    kept = np.ones(s.shape, bool) if soft or ignore_index is None else target != ignore_index
    known = np.ones(s.shape, bool) if soft else (target >= 0) & (target < classes)
    hit = w * y if soft else np.where(y, w, 0)  # the weights of other classes are unused
    q = w * ((1 - smoothing) * y + smoothing / classes) if smoothing else hit

    if log_probs:
        losses, p, complement = -x, np.zeros_like(x), np.ones_like(x)
        lse = np.zeros_like(x[..., :1])
    else:
        losses, p, complement = log_softmax(x)
        lse = x.max(-1, keepdims=True) + losses.min(-1, keepdims=True)
    mass = q.sum(-1, keepdims=True)
    loss = np.where(known, times(q, losses).sum(-1) + z * lse[..., 0] ** 2, LONG("nan"))
    # A p - q with A p - q = (A - q) - A (1 - p) where p is above one half.
    likely = p > 0.5  # noqa: PLR2004 -- one half
    gradient = np.where(likely, mass - q - mass * complement, mass * p - q)
    gradient = times(slope, gradient + 2 * z * times(p, lse))
    gradient = np.where(known[..., None], gradient, LONG("nan"))

    # An ulp of a logit is an error of the gap only where a cap or a division has rounded it.
    finite = np.where(np.isfinite(x), np.abs(x), 0)
    rounds = logit_softcap is not None or temperature != 1
    blur = finite.max(-1, keepdims=True) if rounds else 0
    size = finite.max(-1, keepdims=True) + np.log1p(LONG(classes))
    loss_scale = times(np.abs(q), np.abs(losses) + blur).sum(-1) + 4 * z * size[..., 0] ** 2
    magnitude = np.where(likely, np.abs(mass - q) + np.abs(mass) * complement, np.abs(mass) * p)
    gradient_scale = magnitude + np.where(likely, 0, np.abs(q))
    gradient_scale = (gradient_scale * (1 + blur) + 8 * z * size * p) * slope * wobble

    divisor = LONG(1)
    if normalizer is not None:
        divisor = LONG(normalizer)
    elif reduction == "mean":
        divisor = (kept * s * (1 if soft else hit.sum(-1))).sum()
    elif reduction == "weighted_mean":
        divisor = (kept * s * mass[..., 0]).sum()
    seed = LONG(1) if cotangent is None else cotangent.astype(LONG)
    row_seed = seed * s
    value: Array = np.where(kept, times(s, loss), 0)
    value_scale = np.where(kept, times(np.abs(s), loss_scale), 0)
    if reduction != "none":
        # The mean of nothing is NaN, and its gradient 0.
        value = value.sum() / divisor if divisor else LONG("nan")
        value_scale = value_scale.sum() / abs(divisor)
        row_seed = row_seed / divisor if divisor else 0 * row_seed
    row_seed = np.broadcast_to(row_seed, kept.shape)
    # A weight of 0 leaves nothing of a finite gradient, and NaN of a damaged row's.
    alive = kept[..., None] & ((row_seed != 0)[..., None] | np.isnan(gradient))
    gradient = np.where(alive, gradient * row_seed[..., None], 0)
    gradient_scale = np.where(alive, gradient_scale * np.abs(row_seed)[..., None], 0)
    return Truth(
        value,
        np.moveaxis(gradient, -1, axis),
        value_scale,
        np.moveaxis(gradient_scale, -1, axis),
    )


@np.errstate(all="ignore")
def binary_cross_entropy(
    logits: Array,
    target: Array,
    *,
    weight: Array | float = 1.0,
    pos_weight: Array | float = 1.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    cotangent: Array | None = None,
) -> Truth:
    """Binary cross-entropy as `xentx.binary_cross_entropy` defines it, its gradient, their scales.

    Examples
    --------
    >>> truth = binary_cross_entropy(np.asarray([20.0]), np.asarray([1]))
    >>> f"{float(truth.value):.6e} {float(truth.gradient[0]):.6e}"
    '2.061154e-09 -2.061154e-09'
    """
    x, y, w = (np.asarray(a).astype(LONG) for a in (logits, target, weight))
    w = np.broadcast_to(w, x.shape)
    smoothing = LONG(label_smoothing)
    negative, positive = ((1 - smoothing) * share + smoothing / 2 for share in (1 - y, y))
    positive = positive * np.asarray(pos_weight).astype(LONG)
    tail = np.exp(-np.abs(x))
    # Of the positive class, and of the negative one: log(1 + e^-x), and its derivative's size.
    surprisals = [np.maximum(side, 0) + np.log1p(tail) for side in (-x, x)]
    slopes = [np.where(side > 0, 1, tail) / (1 + tail) for side in (-x, x)]
    value = times(w, times(positive, surprisals[0]) + times(negative, surprisals[1]))
    terms = negative * slopes[1], positive * slopes[0]
    seed = (LONG(1) if cotangent is None else cotangent.astype(LONG)) * w
    if reduction != "none":
        divisor = {"sum": LONG(1), "mean": LONG(x.size), "weighted_mean": w.sum()}[reduction]
        # The mean of nothing is NaN, and its gradient 0.
        value = value.sum() / divisor if divisor else LONG("nan")
        seed = seed / divisor if divisor else 0 * seed
    gradient = np.where(np.isnan(x), LONG("nan"), seed * (terms[0] - terms[1]))
    return Truth(value, gradient, np.abs(value), np.abs(seed) * (terms[0] + terms[1]))


def _centred(a: Array, r: Array) -> Array:
    """``a (r - sum a r)``, relative to the r of the likeliest class."""
    relative = r - np.take_along_axis(r, a.argmax(-1)[..., None], -1)
    return times(a, relative - times(a, relative).sum(-1, keepdims=True))


@np.errstate(all="ignore")
def kl_divergence(
    logits: Array,
    reference_logits: Array,
    *,
    axis: int = -1,
    beta: float = 0.0,
    temperature: float = 1.0,
    sample_weight: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    cotangent: Array | None = None,
) -> tuple[Truth, Truth]:
    """Divergence as `xentx.kl_divergence` defines it, with respect to the logits and the reference.

    Examples
    --------
    >>> truth, _ = kl_divergence(np.asarray([[1.0, 2.0, 0.5]]), np.asarray([[1.5, 1.0, 0.5]]))
    >>> f"{float(truth.value):.6f}"
    '0.230143'
    """
    x, y = (
        np.moveaxis(a.astype(LONG), axis, -1) / LONG(temperature)
        for a in (logits, reference_logits)
    )
    kept = np.ones(x.shape[:-1], bool) if where is None else where
    x, y = (np.where(kept[..., None], a, 0) for a in (x, y))
    less_p, p, _ = log_softmax(x)
    less_q, q, _ = log_softmax(y)
    nowhere = (x == -np.inf) & (y == -np.inf)
    ratio = np.where(nowhere, 0 * (p + q), less_p - less_q)  # NaN in a row without probabilities
    b = LONG(beta)
    if b in (0, 1):
        sides = [(1 - b, q, p, ratio), (b, p, q, -ratio)]
    else:
        m = b * q + (1 - b) * p
        by_q, by_p = (-np.log1p(share * np.expm1(r)) for share, r in ((1 - b, -ratio), (b, ratio)))
        sides = [(b, q, m, by_q), (1 - b, p, m, by_p)]
    # Not negative, since both distributions sum to 1.
    terms = [np.where(a == 0, c, a * (np.expm1(-r) + r)) for _, a, c, r in sides]
    totals = [term.sum(-1, keepdims=True) for term in terms]
    rows = sum(
        share * total[..., 0] for (share, *_), total in zip(sides, totals, strict=True) if share
    )
    by_y, by_x = (share * _centred(a, r) for share, a, _, r in sides)
    apart = np.where(ratio >= 0, q, -p) * np.expm1(-np.abs(ratio))  # p - q
    by_x, by_y = (apart if b == 0 else by_x), (-apart if b == 1 else by_y)
    s = np.ones(kept.shape, LONG) if sample_weight is None else sample_weight.astype(LONG)
    seed = np.where(kept, (LONG(1) if cotangent is None else cotangent.astype(LONG)) * s, 0)
    value: Array = np.where(kept, times(s, rows), 0)
    if reduction != "none":
        divisor = LONG(1) if reduction == "sum" else np.where(kept, s, 0).sum()
        value = value.sum() / divisor if divisor else LONG("nan")
        seed = seed / divisor if divisor else 0 * seed
    seed = seed[..., None] / LONG(temperature)
    gradients = (np.where(kept[..., None], seed * g, 0) for g in (by_x, by_y))
    # An error of a unit of the largest log-ratio is one of every log-ratio. Where a division rounds
    # the logits, so is one of the largest logit.
    sizes = (ratio, x, y) if temperature != 1 else (ratio,)
    finite = (np.where(np.isfinite(a), np.abs(a), 0).max(-1, keepdims=True) for a in sizes)
    blur = 1 + sum(finite)
    spread = (np.abs(p - q) * blur).sum(-1)
    scale = np.moveaxis(np.abs(seed) * np.maximum(p, q) * blur, -1, axis)
    value_scale = np.where(kept, times(np.abs(s), rows + spread), 0)
    if reduction != "none":
        value_scale = value_scale.sum() / abs(divisor)
    by_logits, by_reference = (np.moveaxis(g, -1, axis) for g in gradients)
    return Truth(value, by_logits, value_scale, scale), Truth(
        value, by_reference, value_scale, scale
    )


OF_LOSS: dict[str, Callable[..., Truth]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
"""What computes the truth of each of xentx's losses."""
