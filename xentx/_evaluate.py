"""Evaluate a checked call by the first engine that supports it, or by the core.

An engine returns None to decline a call. The core's value is attached to the framework's autodiff,
or its gradient is computed together with the value. Adapters use it for derivatives that an engine
lacks.
"""

from collections.abc import Sequence
from dataclasses import replace

from xentx import _calls
from xentx._calls import Kind, Prepared, Problem
from xentx._core import per_row
from xentx._core import reduction as reductions
from xentx._types import Array

Arrays = Sequence[Array | None]


def value(problem: Problem) -> Array:
    """Value of the problem, which the framework can differentiate."""
    kind, arrays = problem
    for engine in kind.engines:
        value = engine.adapter.solve(kind, _for_engines(kind, arrays))
        if value is not None:
            return value
    return portable(kind, arrays)


def value_and_gradient(
    problem: Problem, cotangent: Array | None, *, overwrite: bool = False
) -> tuple[Array, Array]:
    """Value of the problem, and the pullback of its cotangent (by default ones) to its first array.

    With `overwrite`, the gradient may be written to the memory of that array.
    """
    kind, arrays = problem
    for engine in kind.engines:
        given = _for_engines(kind, arrays)
        both = engine.adapter.solve_with_gradient(kind, given, cotangent, overwrite=overwrite)
        if both is not None:
            return both
    return portable_with_gradient(kind, arrays, cotangent)


def _for_engines(kind: Kind, arrays: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """Cast the small arrays to the dtypes that engines read."""
    logits, target, weight, sample_weight, normalizer = arrays  # engines support no others
    if kind.target_dtype_supported and weight is sample_weight is normalizer is None:
        return arrays
    backend = kind.backend
    compute = kind.spec.precision.compute
    xp = backend.namespace(logits)
    if not kind.target_dtype_supported:
        target = xp.astype(target, xp.int64 if backend.has_float64(logits) else xp.int32)
    if weight is not None:
        weight = xp.astype(weight, compute, copy=False)
    if sample_weight is not None:
        sample_weight = xp.astype(sample_weight, compute, copy=False)
    if normalizer is not None:
        normalizer = xp.astype(normalizer, compute, copy=False)
    return logits, target, weight, sample_weight, normalizer


def portable(kind: Kind, arrays: Arrays) -> Array:
    """Value by the core, attached to the framework's autodiff."""
    backend = kind.backend
    prepared = _calls.prepare(Problem(kind, tuple(arrays)))
    with backend.evaluating():
        raw = backend.attach(kind.operation, prepared.spec, prepared.arrays)
        return finish(kind, prepared, raw)


def portable_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: Array | None
) -> tuple[Array, Array]:
    """Value and gradient by the core's functions, without autodiff.

    It works for NumPy and every other library.
    """
    backend, operation = kind.backend, kind.operation
    prepared = _calls.prepare(Problem(kind, tuple(arrays)))
    spec, inputs = prepared.spec, prepared.arrays
    xp = backend.namespace(inputs[0])
    with backend.evaluating():
        raw, residuals = operation.forward(xp, spec, *inputs)
        result = finish(kind, prepared, raw)
        seed = xp.ones_like(result) if cotangent is None else cotangent
        seed = xp.astype(seed, spec.precision.compute, copy=False)
        if operation.IS_ROWWISE:
            seed = reductions.pullback(
                xp, spec, seed, prepared.sample_weight, kind.spec.reduction, prepared.divisor
            )
        first = tuple(i == 0 for i in range(len(inputs)))
        gradients = operation.pullback(xp, spec, inputs, residuals, seed, first)
    return result, gradients[0]


def row_stats(problem: Problem) -> tuple[Array, ...]:
    """Fields of `xentx.RowStats` of a cross-entropy without a reduction."""
    kind, arrays = problem
    for engine in kind.engines:
        fields = engine.adapter.row_stats(kind, _for_engines(kind, arrays))
        if fields is not None:
            return fields
    return value(problem), *_other_stats(problem)


def portable_row_stats(kind: Kind, arrays: Arrays) -> tuple[Array, ...]:
    """Fields of `xentx.RowStats` by the core."""
    return portable(kind, arrays), *_other_stats(Problem(kind, tuple(arrays)))


def _other_stats(problem: Problem) -> tuple[Array, ...]:
    """The fields except the loss, by the core's expressions, which the framework differentiates."""
    prepared = _calls.prepare(problem)
    logits: Array = prepared.arrays[0]
    backend = problem.kind.backend
    xp = backend.namespace(logits)
    with backend.evaluating():
        *fields, correct, prediction = per_row.forward(xp, prepared.bound, *prepared.arrays[:2])
        rounded = (xp.astype(field, logits.dtype, copy=False) for field in fields)
        return *rounded, correct, prediction


def several_row_stats(problem: Problem) -> tuple[Array, ...]:
    """Fields of `xentx.RowStats` where each row has several class indices."""
    prepared = _calls.prepare(problem)
    logits: Array = prepared.arrays[0]
    backend = problem.kind.backend
    xp = backend.namespace(logits)
    with backend.evaluating():
        *fields, correct, prediction = per_row.of_several(xp, prepared.bound, *prepared.arrays[:2])
        rounded = (xp.astype(field, logits.dtype, copy=False) for field in fields)
        return *rounded, correct, prediction


def value_shape(problem: Problem) -> tuple[int | None, ...]:
    """Shape of the value."""
    kind, arrays = problem
    shape, axis = _calls.shape_of(arrays[0]), kind.spec.axis
    if not kind.operation.IS_ROWWISE:
        return shape
    return shape[:axis] + shape[axis + 1 :] if kind.spec.reduction == "none" else ()


def normalizer(problem: Problem) -> Array:
    """Return the divisor of a mean, also if the reduction is not a mean."""
    kind, arrays = problem
    if kind.spec.reduction not in ("mean", "weighted_mean"):
        kind = replace(kind, spec=replace(kind.spec, reduction="mean"))
    divisor: Array = _calls.prepare(Problem(kind, arrays)).divisor
    return divisor


def finish(kind: Kind, prepared: Prepared, raw: Array) -> Array:
    """Reduce the result, and round it once to the dtype of the logits."""
    logits: Array = prepared.arrays[0]
    xp = kind.backend.namespace(logits)
    if kind.operation.IS_ROWWISE:
        raw = reductions.forward(
            xp,
            prepared.spec,
            raw,
            prepared.sample_weight,
            kind.spec.reduction,
            prepared.divisor,
        )
    return xp.astype(raw, logits.dtype, copy=False)
