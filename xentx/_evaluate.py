"""From a problem to its value: through the framework's autodiff, or with the gradient beside it."""

from typing import Any

from xentx import _problem
from xentx._core import reduction as reductions
from xentx._problem import Problem

Array = Any


def value(problem: Problem) -> Array:
    """Value of the problem, which the framework can differentiate."""
    backend = problem.backend
    with backend.evaluating():
        raw = backend.attach(problem.operation, problem.spec, problem.arrays)
        return _finish(problem, raw)


def value_and_gradient(problem: Problem, cotangent: object | None) -> tuple[Array, Array]:
    """Value of the problem, and the cotangent pulled back to its first array.

    The core's own pair of functions, with no autodiff: so it serves NumPy and every other library.
    """
    backend, spec, arrays = problem.backend, problem.spec, problem.arrays
    logits: Array = arrays[0]
    xp = backend.namespace(logits)
    with backend.evaluating():
        raw, residuals = problem.operation.forward(xp, spec, *arrays)
        result = _finish(problem, raw)
        if cotangent is None:
            cotangent = xp.ones_like(result)
        else:
            cotangent = _problem.cotangent(backend, cotangent, result)
        seed = xp.astype(cotangent, spec.precision.compute, copy=False)
        if problem.reduction is not None:
            seed = reductions.pullback(
                xp, spec, seed, problem.sample_weight, problem.reduction, problem.divisor
            )
        first = tuple(i == 0 for i in range(len(arrays)))
        gradients = problem.operation.pullback(xp, spec, arrays, residuals, seed, first)
    return result, gradients[0]


def _finish(problem: Problem, raw: Array) -> Array:
    """Reduce, and round to the dtype of the logits: once."""
    logits: Array = problem.arrays[0]
    xp = problem.backend.namespace(logits)
    if problem.reduction is not None:
        raw = reductions.forward(
            xp, problem.spec, raw, problem.sample_weight, problem.reduction, problem.divisor
        )
    return xp.astype(raw, logits.dtype, copy=False)
