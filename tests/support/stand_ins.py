"""Losses to register as natives: good, bad and broken ones, on NumPy's arrays."""

import numpy as np

import xentx


def right(logits, target, *, reduction="none"):
    """What xentx returns."""
    return xentx.cross_entropy(logits, target, reduction=reduction)


def near(logits, target, *, reduction="none"):
    """Some units in the last place off."""
    loss = right(logits, target, reduction=reduction)
    return loss * loss.dtype.type(1 + 8 * np.finfo(loss.dtype).eps)


def wrong(logits, target, *, reduction="none"):
    """A percent off."""
    return right(logits, target, reduction=reduction) * np.float32(1.01)


def reduces(logits, target, *, reduction="mean"):
    """Has no loss for each row."""
    return np.asarray(right(logits, target, reduction=reduction))


def of_one_row(logits, target, *, reduction="none"):
    """Reduces, whatever it is asked."""
    return reduces(logits, target)


def raises(logits, target, *, reduction="none"):
    """Refuses everything."""
    msg = "nothing is good enough\nsecond line"
    raise ArithmeticError(msg)


def accepts(logits, target, *, reduction="none"):
    """Refuses nothing."""
    return np.zeros(np.shape(target), logits.dtype)
