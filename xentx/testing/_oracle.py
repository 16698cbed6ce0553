"""The truth: SEMANTICS in extended precision, by a formula that shares nothing with the core.

Everything is dense and plain: the target distribution, then sums. x87 long doubles carry 64 bits;
where the platform has no such type the tests that need it say so. Beside each number stands its
scale, the sum of the magnitudes of the terms that it is summed from: what a rounding error of one
unit in every term may add up to, and so what an error is fairly measured against.
"""

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
    gap = top - x
    e = np.exp(-gap)
    leader = np.arange(x.shape[-1]) == x.argmax(-1)[..., None]
    rest = np.where(leader, 0, e).sum(-1, keepdims=True)
    p = e / (1 + rest)
    others = np.where(leader, rest / (1 + rest), 1 - p)
    return gap + np.log1p(rest), p, others


def cross_entropy(
    logits: Array,
    target: Array,
    *,
    axis: int = -1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    cotangent: Array | None = None,
) -> Truth:
    """Loss, gradient and scales of finite logits."""
    x = np.moveaxis(np.asarray(logits).astype(LONG), axis, -1)
    classes = x.shape[-1]
    slope = LONG(1)
    if logit_softcap is not None:
        t = np.tanh(x / logit_softcap)
        x, slope = logit_softcap * t, 1 - t * t
    soft = np.asarray(target).dtype.kind not in "iu"
    y = np.moveaxis(target.astype(LONG), axis, -1) if soft else one_hot(target, classes)
    w = np.ones(classes, LONG) if weight is None else weight.astype(LONG)
    s = np.ones(x.shape[:-1], LONG) if sample_weight is None else sample_weight.astype(LONG)
    kept = np.ones(s.shape, bool) if soft else target != ignore_index
    q = w * ((1 - LONG(label_smoothing)) * y + LONG(label_smoothing) / classes)
    if not soft:
        hard = (y * w).sum(-1, keepdims=True)
        q = (1 - LONG(label_smoothing)) * y * hard + LONG(label_smoothing) / classes * w

    losses, p, complement = log_softmax(x)
    mass = q.sum(-1, keepdims=True)
    lse = (losses + x)[..., :1]
    loss = (q * losses).sum(-1) + z_loss * lse[..., 0] ** 2
    # A p - q with A p - q = (A - q) - A (1 - p) where p is above one half.
    others = mass - q
    gradient = np.where(p > 0.5, others - mass * complement, mass * p - q)
    gradient = (gradient + 2 * z_loss * lse * p) * slope

    # One ulp of a logit is an error of the gap itself only where a cap has rounded the logits.
    blur = 0 if logit_softcap is None else np.abs(x).max(-1, keepdims=True)
    size = np.abs(x).max(-1, keepdims=True) + np.log1p(classes)
    loss_scale = (np.abs(q) * (losses + blur)).sum(-1) + 4 * z_loss * size[..., 0] ** 2
    magnitude = np.where(p > 0.5, np.abs(others) + np.abs(mass) * complement, np.abs(mass) * p)
    gradient_scale = magnitude + np.where(p > 0.5, 0, np.abs(q))
    gradient_scale = (gradient_scale * (1 + blur) + 8 * z_loss * size * p) * slope

    share = {
        "mean": np.ones(s.shape, LONG) if soft else (y * w).sum(-1),
        "weighted_mean": mass[..., 0],
    }
    scale = s * kept
    if normalizer is not None:
        divisor = LONG(normalizer)
    elif reduction in share:
        divisor = (share[reduction] * scale).sum()
    else:
        divisor = LONG(1)
    seed = LONG(1) if cotangent is None else cotangent.astype(LONG)
    if reduction == "none":
        value, value_scale, row_seed = loss * scale, loss_scale * np.abs(scale), seed * scale
    else:
        value = (loss * scale).sum() / divisor
        value_scale = (loss_scale * np.abs(scale)).sum() / abs(divisor)
        row_seed = seed * scale / divisor
    gradient = np.moveaxis(gradient * row_seed[..., None], -1, axis)
    gradient_scale = np.moveaxis(gradient_scale * np.abs(row_seed)[..., None], -1, axis)
    return Truth(value, gradient, value_scale, gradient_scale)


DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


def epsilon(dtype: np.dtype) -> float:
    """Distance from 1 to the next number: one unit in the last place, relative."""
    return float(ml_dtypes.finfo(dtype).eps)


def tiny(dtype: np.dtype) -> float:
    """Smallest normal number: below it compilers may flush to zero."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)


def ulps(actual: Array, truth: Array) -> Array:
    """Error in units in the last place of `actual`'s dtype at the true value."""
    truth = np.asarray(truth, LONG)
    floor = tiny(actual.dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(truth), LONG(floor))))
    error = np.abs(actual.astype(LONG) - truth)
    return (error / (np.exp2(exponent) * epsilon(actual.dtype))).astype(np.float64)


def assert_within(actual: Array, truth: Array, scale: Array, units: float) -> None:
    """Assert an error of at most so many units of the dtype's precision, relative to `scale`."""
    allowed = units * epsilon(actual.dtype) * np.asarray(scale) + tiny(actual.dtype)
    error = np.abs(actual.astype(LONG) - truth)
    assert actual.shape == np.shape(truth)
    assert np.all(error <= allowed), f"{np.max(error / allowed)} times the {units} units allowed"
