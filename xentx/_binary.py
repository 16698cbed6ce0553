"""Evaluate `binary_cross_entropy`. Each logit is a row.

`xentx._validation.binary` adds a class axis of length 1 at the end. It is removed from the gradient
here.
"""

from xentx import _evaluate
from xentx._calls import Problem
from xentx._evaluate import normalizer, value, value_shape
from xentx._types import Array

__all__ = ["normalizer", "value", "value_and_gradient", "value_shape"]


def value_and_gradient(problem: Problem, cotangent: Array | None) -> tuple[Array, Array]:
    """Value of the problem, and the pullback of its cotangent (by default ones) to the logits."""
    kind, _ = problem
    result, gradient = _evaluate.value_and_gradient(problem, cotangent)
    return result, kind.backend.namespace(gradient).squeeze(gradient, axis=kind.spec.axis)
