"""Pass NumPy's arrays to the CPU kernel, with any strides and without a copy."""

import math
from typing import Any

import numpy as np

from xentx._calls import Kind
from xentx._kernel_engine import UNREADABLE, Layout, plan
from xentx_numpy import _memory

Array = np.ndarray[Any, Any]
Arrays = tuple[Any, ...]

# Cotangents of the fields of RowStats, if no gradient is requested.
_NO_SEEDS = (None, None, None, None)


def unusable() -> str | None:
    """Return None: the kernel supports every version of NumPy."""
    return None


def declines(array: Array) -> str | None:  # noqa: ARG001 -- all arrays are in memory
    """Return None: the kernel supports all arrays."""
    return None


def solve(kind: Kind, arrays: Arrays) -> Array | None:
    """Value. None if a class index is out of range, for which the core raises the error."""
    value = _empty_value(kind, arrays[0])
    wrong = _run(kind, kind.spec.operation, arrays, value=value)
    return value[()] if wrong < 0 else None


def solve_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: Array | None, *, overwrite: bool = False
) -> tuple[Array, Array] | None:
    """Value and gradient in one pass over the logits. None as in `solve`."""
    logits = arrays[0]
    value = _empty_value(kind, logits)
    in_place = overwrite and logits.flags.c_contiguous
    gradient = logits if in_place else _memory.empty(logits.shape, logits.dtype)
    compute = kind.spec.precision.compute
    seed = None if cotangent is None else cotangent.astype(compute, copy=False)
    operation = kind.spec.operation
    if not kind.operation.IS_ROWWISE:
        _run(kind, operation, arrays, value=value)
        seed = np.ones(value.shape, logits.dtype) if seed is None else seed
        _run(kind, f"{operation}_pullback", arrays, seed=seed, gradient=gradient)
    elif _run(kind, operation, arrays, seed=seed, value=value, gradient=gradient) >= 0:
        return None
    return value[()], gradient


def row_stats(kind: Kind, arrays: Arrays) -> Arrays | None:
    """Fields of RowStats. None as in `solve`."""
    logits, *_ = arrays
    loss = _empty_value(kind, logits)
    dtypes = (logits.dtype, logits.dtype, logits.dtype, np.bool_, np.int64)
    fields = (loss, *(np.empty(loss.shape, dtype) for dtype in dtypes))
    wrong = _run(kind, "row_stats", arrays, fields=fields)
    return tuple(field[()] for field in fields) if wrong < 0 else None


def _empty_value(kind: Kind, logits: Array) -> Array:
    spec, shape = kind.spec, logits.shape
    if not kind.operation.IS_ROWWISE:
        return np.empty(shape, logits.dtype)
    if spec.reduction == "none":
        return np.empty(shape[: spec.axis] + shape[spec.axis + 1 :], logits.dtype)
    return np.empty((), logits.dtype)


def _run(
    kind: Kind,
    operation: str,
    arrays: Arrays,
    *,
    seed: Array | None = None,
    value: Array | None = None,
    gradient: Array | None = None,
    fields: Arrays = (),
) -> int:
    """Call the kernel, and return the first row with a class index that is out of range, or -1."""
    x, t, w, s, n, u = given = (*arrays, seed)
    key = (
        operation,
        x.strides,
        None if t is None else t.strides,
        None if w is None else w.strides,
        None if s is None else s.strides,
        None if u is None else u.strides,
    )

    bad: int = UNREADABLE
    ready = kind.plans.get(key)
    if fields and ready is not None:
        bad = ready.row_stats(fields, None, _NO_SEEDS, 0, x, t, w)
    elif ready is not None:
        bad = ready(value, gradient, u, 0, x, t, w, s, n)
    if bad == UNREADABLE:  # a new layout, or memory that the kernel cannot read
        views, ready = _prepare(kind, operation, given)
        in_place = (
            a is None or a.ctypes.data == v.ctypes.data for a, v in zip(given, views, strict=True)
        )
        if all(in_place):
            kind.plans[key] = ready
        x, t, w, s, n, u = views
        if fields:
            bad = ready.row_stats(fields, None, _NO_SEEDS, 0, x, t, w)
        else:
            bad = ready(value, gradient, u, 0, x, t, w, s, n)
    return bad


def _prepare(kind: Kind, operation: str, arrays: Arrays) -> tuple[Arrays, Any]:
    """View the arrays as (outer, classes, inner) or (outer, inner), and make a plan.

    An array is copied only if it has no such view, or if its elements are not aligned.
    """
    spec, shape = kind.spec, arrays[0].shape
    full = (math.prod(shape[: spec.axis]), spec.classes, math.prod(shape[spec.axis + 1 :]))
    rows = (full[0], full[2])
    cotangent = rows if kind.operation.IS_ROWWISE else full
    forms = (full, full if spec.soft else rows, (full[1],), rows, (), cotangent)

    views: list[Any] = []
    layouts: list[Layout] = []
    for array, form in zip(arrays, forms, strict=True):
        if array is None:
            views.append(None)
            layouts.append(None)
            continue
        plain = array
        odd = any(stride % array.itemsize for stride in array.strides)
        if odd or not array.flags.aligned:
            plain = np.array(array, order="C")
        view = plain if plain.ndim == 0 else plain.reshape(form)
        steps = tuple(stride // view.itemsize for stride in view.strides)
        by_ndim = {0: (0, 0, 0), 1: (0, *steps, 0), 2: (*steps[:1], 0, *steps[1:]), 3: steps}
        views.append(view)
        layouts.append((view.dtype.name, (0, *by_ndim[view.ndim])))
    names = ("target", "weight", "sample_weight", "normalizer", "cotangent")
    rest: Any = dict(zip(names, layouts[1:], strict=True))
    return tuple(views), plan(spec, full, layouts[0], operation=operation, **rest)
