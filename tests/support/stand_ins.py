"""Losses of NumPy arrays to register as natives: correct, inaccurate and failing ones."""

import numpy as np

import xentx


def right(logits, target, *, reduction="none"):
    """Return the same values as xentx."""
    return xentx.cross_entropy(logits, target, reduction=reduction)


def near(logits, target, *, reduction="none"):
    """Differ by some units in the last place."""
    loss = right(logits, target, reduction=reduction)
    return loss * loss.dtype.type(1 + 8 * np.finfo(loss.dtype).eps)


def wrong(logits, target, *, reduction="none"):
    """Differ by one percent."""
    return right(logits, target, reduction=reduction) * np.float32(1.01)


def reduces(logits, target, *, reduction="mean"):
    """Support no reduction "none"."""
    return np.asarray(right(logits, target, reduction=reduction))


def of_one_row(logits, target, *, reduction="none"):
    """Ignore the argument `reduction`."""
    return reduces(logits, target)


def raises(logits, target, *, reduction="none"):
    """Raise an error for every input."""
    msg = "nothing is good enough\nsecond line"
    raise ArithmeticError(msg)


def accepts(logits, target, *, reduction="none"):
    """Accept every input."""
    return np.zeros(np.shape(target), logits.dtype)
