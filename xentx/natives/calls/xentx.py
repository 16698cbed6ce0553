"""The losses of xentx with the same arguments, and their gradients for NumPy."""

from typing import Any

import xentx
from xentx._types import Array

cross_entropy = xentx.cross_entropy
binary_cross_entropy = xentx.binary_cross_entropy


def cross_entropy_gradient(logits: Array, target: Array, **options: Any) -> Array:
    """Return the gradient of xentx.value_and_grad."""
    return xentx.value_and_grad(xentx.cross_entropy)(logits, target, **options)[1]


def binary_cross_entropy_gradient(logits: Array, target: Array, **options: Any) -> Array:
    """Return the gradient of xentx.value_and_grad."""
    return xentx.value_and_grad(xentx.binary_cross_entropy)(logits, target, **options)[1]
