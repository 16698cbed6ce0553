"""The true loss and gradient, by formulas and in an arithmetic of their own.

Nothing of xentx's core is used: what is compared must not vouch for itself. NumPy's longdouble
carries 64 bits on x86-64 and 113 on 64-bit ARM under Linux, against 53 of float64.

For finite logits ``x`` and an integer target ``t`` the loss is

    log(sum_j exp(x_j - x_t)) = log1p(sum_{j != t} exp(x_j - x_t))

in which nothing cancels, however confident the row; where some ``x_j`` is far above ``x_t``, the
largest difference is taken out first. The gradient at ``t`` is minus the others' probabilities.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PRECISION = int(np.finfo(np.longdouble).nmant) + 1
"""Bits of the significand in which the truth is computed."""


def _wide(values: Any) -> Array:
    return np.asarray(values).astype(np.longdouble)


def _hard_rows(x: Array, t: Array) -> tuple[Array, Array, Array]:
    """Return ``lse - x_t``, the softmax and ``p_t - 1`` of rows of finite logits."""
    at = t[:, None]
    gap = x - np.take_along_axis(x, at, axis=1)
    top = np.maximum(gap.max(axis=1, keepdims=True), 0.0)
    terms = np.exp(gap - top)
    np.put_along_axis(terms, at, 0.0, axis=1)
    others = terms.sum(axis=1, keepdims=True)
    own = np.exp(-top)
    loss = np.where(top > 0.0, top + np.log(own + others), np.log1p(others))
    p = terms / (own + others)
    np.put_along_axis(p, at, own / (own + others), axis=1)
    return loss[:, 0], p, (-others / (own + others))[:, 0]


def _soft_rows(x: Array) -> tuple[Array, Array, Array]:
    """Return ``lse - x_k``, the softmax and ``1 - p_k`` of any rows."""
    lost = np.isnan(x).any(axis=1) | (x == np.inf).any(axis=1) | (x == -np.inf).all(axis=1)
    x = np.where(lost[:, None], np.nan, x)
    at = np.argmax(x, axis=1)[:, None]
    below = np.take_along_axis(x, at, axis=1) - x
    terms = np.exp(-below)
    np.put_along_axis(terms, at, 0.0, axis=1)
    others = terms.sum(axis=1, keepdims=True)
    p = terms / (1.0 + others)
    np.put_along_axis(p, at, 1.0 / (1.0 + others), axis=1)
    rest = 1.0 - p
    np.put_along_axis(rest, at, others / (1.0 + others), axis=1)
    return below + np.log1p(others), p, rest


def _times(q: Array, surprisal: Array) -> Array:
    return np.where((q == 0.0) & ~np.isnan(surprisal), 0.0, q * surprisal)


def loss_and_gradient(
    logits: Array,
    target: Array,
    *,
    axis: int = -1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "none",
) -> tuple[Array, Array]:
    """Compute the cross-entropy that xentx's rules define, and its gradient.

    Parameters
    ----------
    logits
        Finite or not, in any shape.
    target
        Integers in the shape of `logits` without the class axis, or floats in its full shape. A
        class that doesn't exist makes its row NaN.
    axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        As in `xentx.cross_entropy`.

    Returns
    -------
    loss, gradient : ndarray of longdouble
        The loss, and the gradient of its sum by the logits.

    Examples
    --------
    >>> loss, gradient = loss_and_gradient(np.asarray([[20.0, 0.0]]), np.asarray([0]))
    >>> f"{float(loss[0]):.6e}"
    '2.061154e-09'
    """
    with np.errstate(all="ignore"):
        return _loss_and_gradient(
            logits,
            target,
            axis=axis,
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            smoothing=label_smoothing,
            reduction=reduction,
        )


def _loss_and_gradient(
    logits: Array,
    target: Array,
    *,
    axis: int,
    weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int,
    smoothing: float,
    reduction: str,
) -> tuple[Array, Array]:
    moved = np.moveaxis(_wide(logits), axis, -1)
    classes = moved.shape[-1]
    x = moved.reshape(-1, classes)
    w = np.ones(classes, np.longdouble) if weight is None else _wide(weight)
    s = np.ones(len(x), np.longdouble) if sample_weight is None else _wide(sample_weight).ravel()
    soft = target.dtype.kind == "f"
    if soft:
        y = np.moveaxis(_wide(target), axis, -1).reshape(-1, classes)
        kept = np.ones(len(x), bool)
        outside = np.zeros(len(x), bool)
        q = w * ((1.0 - _wide(smoothing)) * y + _wide(smoothing) / classes)
        amount = s
    else:
        t = target.reshape(-1)
        kept = t != ignore_index
        outside = kept & ((t < 0) | (t >= classes))
        safe = np.where(kept & ~outside, t, 0).astype(np.int64)
        hit = np.arange(classes) == safe[:, None]
        q = np.where(hit, (1.0 - _wide(smoothing)) * w, 0.0)
        if smoothing:
            q = q + _wide(smoothing) / classes * w
        amount = s * w[safe]

    surprisal, p, rest = _soft_rows(x)
    loss = _times(q, surprisal).sum(axis=1)
    others = q.sum(axis=1, keepdims=True) - q
    gradient = np.where(others == 0.0, 0.0, p * others) - q * rest
    gradient = np.where(np.isnan(p), np.nan, gradient)
    finite = np.isfinite(x).all(axis=1)
    if not soft and not smoothing and finite.any():
        loss[finite], p, minus = _hard_rows(x[finite], safe[finite])
        np.put_along_axis(p, safe[finite][:, None], minus[:, None], axis=1)
        loss[finite] *= w[safe[finite]]
        gradient[finite] = p * w[safe[finite]][:, None]

    loss = np.where(outside, np.nan, np.where(kept, _times(s, loss), 0.0))
    gradient = np.where(outside[:, None], np.nan, gradient * s[:, None])
    gradient = np.where(kept[:, None], gradient, 0.0)
    if reduction == "weighted_mean":
        amount = s * q.sum(axis=1)
    shape = moved.shape
    if reduction == "none":
        value = loss.reshape(shape[:-1])
    else:
        total = np.where(kept, amount, 0.0).sum()
        divisor = np.longdouble(1.0) if reduction == "sum" else total
        value = np.asarray(loss.sum() / divisor if divisor else np.nan, np.longdouble)
        gradient = gradient / divisor if divisor else np.zeros_like(gradient)
    return value, np.moveaxis(gradient.reshape(shape), -1, axis)


def binary_loss_and_gradient(
    logits: Array,
    target: Array,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "none",
) -> tuple[Array, Array]:
    """Compute the binary cross-entropy that xentx's rules define, and its gradient.

    Parameters
    ----------
    logits
        Finite or not, in any shape.
    target
        Probabilities of the positive class, in the same shape.
    weight, pos_weight, label_smoothing, reduction
        As in `xentx.binary_cross_entropy`.

    Returns
    -------
    loss, gradient : ndarray of longdouble
        The loss, and the gradient of its sum by the logits.

    Examples
    --------
    >>> loss, gradient = binary_loss_and_gradient(np.asarray([20.0]), np.asarray([1]))
    >>> f"{float(loss[0]):.6e} {float(gradient[0]):.6e}"
    '2.061154e-09 -2.061154e-09'
    """
    with np.errstate(all="ignore"):
        x, y, smoothing = _wide(logits), _wide(target), _wide(label_smoothing)
        w = np.broadcast_to(_wide(1.0 if weight is None else weight), x.shape)
        share = (1.0 - smoothing) * y + smoothing / 2
        positive = share * _wide(1.0 if pos_weight is None else pos_weight)
        negative = 1.0 - share
        tail = np.exp(-np.abs(x))
        # Of the positive class, and of the negative one: log(1 + e^-x), and its derivative's size.
        surprisals = [np.maximum(side, 0.0) + np.log1p(tail) for side in (-x, x)]
        slopes = [np.where(side > 0.0, 1.0, tail) / (1.0 + tail) for side in (-x, x)]
        loss = _times(positive, surprisals[0]) + _times(negative, surprisals[1])
        loss = _times(w, loss)
        gradient = w * (negative * slopes[1] - positive * slopes[0])
        gradient = np.where(np.isnan(x), np.nan, gradient)
        if reduction == "none":
            return loss, gradient
        divisors = {"sum": 1.0, "mean": x.size, "weighted_mean": w.sum()}
        divisor = np.longdouble(divisors[reduction])
        if not divisor:
            return np.asarray(np.nan, np.longdouble), np.zeros_like(gradient)
        return np.asarray(loss.sum() / divisor), gradient / divisor


OF_LOSS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "cross_entropy": loss_and_gradient,
    "binary_cross_entropy": binary_loss_and_gradient,
}
"""What computes the truth of each of xentx's losses."""
