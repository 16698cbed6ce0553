"""The truth: SEMANTICS in extended precision, by a formula that shares nothing with the core.

Everything is dense and plain: the target distribution, then sums. x87 long doubles carry 64 bits;
where the platform has no such type the tests that need it say so. Beside each number stands its
scale, the sum of the magnitudes of the terms that it is summed from: what a rounding error of one
unit in every term may add up to, and so what an error is fairly measured against.
"""

import functools
from dataclasses import dataclass

import ml_dtypes
import numpy as np

LONG = np.longdouble
Array = np.ndarray


@dataclass(frozen=True)
class Truth:
    """A loss and its gradient by the logits, with the scale of each."""

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
    """Loss, gradient and scales; of `nll_loss` where `log_probs` are given for the logits."""
    x = np.moveaxis(np.asarray(logits).astype(LONG), axis, -1)
    classes = x.shape[-1]
    slope, wobble = LONG(1), LONG(1)
    if logit_softcap is not None:
        x, slope, wobble = softcap(x, LONG(logit_softcap))
    x, slope = x / LONG(temperature), slope / LONG(temperature)
    smoothing, z = LONG(label_smoothing), LONG(z_loss)
    soft = np.asarray(target).dtype.kind not in "iu"
    y = np.moveaxis(target.astype(LONG), axis, -1) if soft else one_hot(target, classes)
    w = np.ones(classes, LONG) if weight is None else weight.astype(LONG)
    s = np.ones(x.shape[:-1], LONG) if sample_weight is None else sample_weight.astype(LONG)
    kept = np.ones(s.shape, bool) if soft or ignore_index is None else target != ignore_index
    q = w * ((1 - smoothing) * y + smoothing / classes)

    if log_probs:
        losses, p, complement = -x, np.zeros_like(x), np.ones_like(x)
        lse = np.zeros_like(x[..., :1])
    else:
        losses, p, complement = log_softmax(x)
        lse = x.max(-1, keepdims=True) + losses.min(-1, keepdims=True)
    mass = q.sum(-1, keepdims=True)
    loss = times(q, losses).sum(-1) + z * lse[..., 0] ** 2
    # A p - q with A p - q = (A - q) - A (1 - p) where p is above one half.
    gradient = np.where(p > 0.5, mass - q - mass * complement, mass * p - q)
    gradient = times(slope, gradient + 2 * z * times(p, lse))

    # An ulp of a logit is an error of the gap only where a cap or a division has rounded it.
    finite = np.where(np.isfinite(x), np.abs(x), 0)
    rounds = logit_softcap is not None or temperature != 1
    blur = finite.max(-1, keepdims=True) if rounds else 0
    size = finite.max(-1, keepdims=True) + np.log1p(LONG(classes))
    loss_scale = times(np.abs(q), np.abs(losses) + blur).sum(-1) + 4 * z * size[..., 0] ** 2
    magnitude = np.where(p > 0.5, np.abs(mass - q) + np.abs(mass) * complement, np.abs(mass) * p)
    gradient_scale = magnitude + np.where(p > 0.5, 0, np.abs(q))
    gradient_scale = (gradient_scale * (1 + blur) + 8 * z * size * p) * slope * wobble

    divisor = LONG(1)
    if normalizer is not None:
        divisor = LONG(normalizer)
    elif reduction == "mean":
        divisor = (kept * s * (1 if soft else (y * w).sum(-1))).sum()
    elif reduction == "weighted_mean":
        divisor = (kept * s * mass[..., 0]).sum()
    seed = LONG(1) if cotangent is None else cotangent.astype(LONG)
    row_seed = seed * s
    value = np.where(kept, times(s, loss), 0)
    value_scale = np.where(kept, times(np.abs(s), loss_scale), 0)
    if reduction != "none":
        with np.errstate(invalid="ignore", divide="ignore"):
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
    """Loss, gradient and scales: a cross-entropy of each logit against 0."""
    x, y, w = (np.asarray(a).astype(LONG) for a in (logits, target, weight))
    smoothing = LONG(label_smoothing)
    negative, positive = ((1 - smoothing) * share + smoothing / 2 for share in (1 - y, y))
    q = np.stack([negative, np.asarray(pos_weight).astype(LONG) * positive], -1)
    losses, p, others = log_softmax(np.stack([np.zeros_like(x), x], -1))
    loss = times(q, losses).sum(-1)
    # q_0 p_1 - q_1 p_0, and p_0 is 1 - p_1 without cancellation.
    terms = q[..., 0] * p[..., 1], q[..., 1] * np.where(x > 0, others[..., 1], p[..., 0])
    seed = (LONG(1) if cotangent is None else cotangent.astype(LONG)) * w
    value, divisor = w * loss, LONG(1)
    if reduction != "none":
        shares = np.broadcast_to(w, x.shape)
        divisor = {"mean": LONG(x.size), "sum": LONG(1), "weighted_mean": shares.sum()}[reduction]
        value = value.sum() / divisor
    scale = np.abs(seed) / abs(divisor) * (terms[0] + terms[1])
    return Truth(value, seed / divisor * (terms[0] - terms[1]), np.abs(value), scale)


DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@functools.cache
def limits(dtype: np.dtype) -> ml_dtypes.finfo:
    """Limits of a dtype: eps, max, tiny."""
    return ml_dtypes.finfo(dtype)


def epsilon(dtype: np.dtype) -> float:
    """Distance from 1 to the next number: one unit in the last place, relative."""
    return float(limits(dtype).eps)


def tiny(dtype: np.dtype) -> float:
    """Smallest normal number: below it compilers may flush to zero."""
    return float(limits(dtype).smallest_normal)


def ulps(actual: Array, truth: Array) -> Array:
    """Error in units in the last place of `actual`'s dtype at the true value."""
    truth = np.asarray(truth, LONG)
    floor = tiny(actual.dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(truth), LONG(floor))))
    error = np.abs(actual.astype(LONG) - truth)
    return (error / (np.exp2(exponent) * epsilon(actual.dtype))).astype(np.float64)


def assert_within(actual: Array, truth: Array, scale: Array, units: float) -> None:
    """Assert NaN where the truth is NaN, and elsewhere an error of at most so many units.

    A unit is the precision of the dtype of the computation, relative to `scale`; a narrow result is
    rounded once.
    """
    truth, narrow = np.asarray(truth, LONG), actual.dtype.itemsize == 2
    computed = DTYPES["float32"] if narrow else actual.dtype
    with np.errstate(invalid="ignore", over="ignore"):
        # Frameworks may flush probabilities that are no normal numbers to 0: eight for each unit.
        allowed = units * (epsilon(computed) * np.asarray(scale, LONG) + 8 * tiny(computed))
        if narrow:
            # Half the distance between two numbers, also between subnormal ones.
            exponent = np.floor(np.log2(np.maximum(np.abs(truth), tiny(actual.dtype))))
            allowed = allowed + 0.5001 * np.exp2(exponent) * epsilon(actual.dtype)
        # Infinite where the true value may be too large for the dtype.
        largest = LONG(float(limits(actual.dtype).max))
        found = np.clip(actual.astype(LONG), -largest, largest)
        error = np.abs(found - np.clip(truth, -largest, largest))
    assert actual.shape == np.shape(truth)
    wrong = np.isnan(actual.astype(LONG)) != np.isnan(truth)
    assert not np.any(wrong), f"{actual[wrong]} where the truth is {truth[wrong]}"
    fine = (error <= allowed) | np.isnan(truth)
    if not np.all(fine):
        worst = np.where(fine, 0, error / allowed)
        at = np.unravel_index(np.argmax(worst), worst.shape)
        msg = f"{worst[at]} times the {units} units allowed at {at}: {actual[at]} for {truth[at]}"
        raise AssertionError(msg)
