"""From arguments to one checked, normalised problem. Every error of xentx's losses is raised here.

Whatever the framework, a problem is the same: arrays of that framework in the dtypes and shapes
that the core computes with, and a hashable `Spec` of everything else. So the texts of the errors
are the same too: the argument, what came, what was wanted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from xentx import _registry
from xentx._backend import Backend, Operation
from xentx._core import reduction as reductions
from xentx._core._spec import Precision, Spec

Array = Any
Reduction = Literal["none", "mean", "sum", "weighted_mean"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED + UNSIGNED


@dataclass(frozen=True, slots=True)
class Problem:
    """What `xentx._evaluate` evaluates.

    Parameters
    ----------
    backend
        Whose arrays these are.
    operation
        The module of `xentx._core` that computes.
    spec
        Its static half.
    arrays
        Its arrays. The first is the one that `value_and_grad` differentiates by.
    reduction
        None where the value has the shape of the logits.
    sample_weight, divisor
        What the rows' losses are multiplied by, and what a mean divides their sum by.
    """

    backend: Backend
    operation: Operation
    spec: Spec
    arrays: tuple[Array | None, ...]
    reduction: Reduction | None = None
    sample_weight: Array | None = None
    divisor: Array | None = None


def shape_of(array: Array) -> tuple[int | None, ...]:
    """Shape; an entry is None where a tracing compiler doesn't know it yet."""
    return tuple(array.shape)


def _agree(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    return len(a) == len(b) and all(
        m == n or m is None or n is None for m, n in zip(a, b, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _convert(backend: Backend, name: str, value: object, like: Array, first: str) -> Array:
    """Make an argument an array of the logits' framework.

    NumPy's arrays and lists are at home everywhere; any other mixture is a mistake.
    """
    owner = _registry.find(value)
    if owner is not None and (owner is backend or owner.name == "numpy"):
        return backend.array(value, like)
    if owner is not None:
        msg = (
            f"{name}: got {_registry.describe(value)} where {first} is "
            f"{_registry.describe(like)}; expected both of one framework, or {name} of NumPy"
        )
        raise TypeError(msg)
    if isinstance(value, list | tuple | Real):
        try:
            return backend.array(np.asarray(value), like)
        except (TypeError, ValueError):
            pass
    msg = f"{name}: got {_registry.describe(value)}; expected an array or a list of numbers"
    raise TypeError(msg)


def _check_dtype(
    backend: Backend, name: str, array: Array, wanted: Sequence[str], hint: str = ""
) -> str:
    dtype = backend.dtype_name(array)
    if dtype not in wanted:
        msg = f"{name}: got dtype {dtype}; expected {_listed(wanted)}{hint}"
        raise TypeError(msg)
    return dtype


def _check_real(name: str, value: object, wanted: str) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        msg = f"{name}: got {_registry.describe(value)}; expected {wanted}"
        raise TypeError(msg)
    return float(value)


def _check_integer(name: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        msg = f"{name}: got {_registry.describe(value)}; expected an integer"
        raise TypeError(msg)
    return int(value)


def _check_axis(axis: object, shape: tuple[int | None, ...], first: str) -> int:
    ndim = len(shape)
    if ndim == 0:
        msg = f"{first}: got a 0-dimensional array; expected at least a class axis"
        raise ValueError(msg)
    if axis is None:
        if ndim > 2:  # noqa: PLR2004
            msg = (
                f"axis: got none for {first} of shape {shape}; with 3 or more dimensions say "
                "which one holds the classes, for example axis=-1 or axis=1"
            )
            raise ValueError(msg)
        axis = -1
    axis = _check_integer("axis", axis)
    if not -ndim <= axis < ndim:
        msg = f"axis: got {axis} for {first} of shape {shape}; expected {-ndim} <= axis < {ndim}"
        raise ValueError(msg)
    return axis % ndim


def _check_classes(shape: tuple[int | None, ...], axis: int, first: str) -> int:
    classes = shape[axis]
    if classes is None:
        msg = (
            f"{first}: got shape {shape} with an unknown number of classes on axis {axis}; "
            "expected one that is known when the function is traced"
        )
        raise ValueError(msg)
    if classes == 0:
        msg = f"{first}: got shape {shape} with 0 classes on axis {axis}; expected at least 1"
        raise ValueError(msg)
    return classes


def _check_reduction(value: object) -> Reduction:
    choices = get_args(Reduction)
    if value not in choices:
        msg = f"reduction: got {value!r}; expected {_listed([repr(c) for c in choices])}"
        raise ValueError(msg)
    return value  # type: ignore[return-value]


def _check_options(
    label_smoothing: object, z_loss: object, logit_softcap: object
) -> tuple[float, float, float | None]:
    smoothing = _check_real("label_smoothing", label_smoothing, "a number")
    if not 0.0 <= smoothing <= 1.0:
        msg = f"label_smoothing: got {smoothing}; expected 0 <= label_smoothing <= 1"
        raise ValueError(msg)
    z = _check_real("z_loss", z_loss, "a number")
    if not 0.0 <= z < math.inf:
        msg = f"z_loss: got {z}; expected 0 <= z_loss < inf"
        raise ValueError(msg)
    if logit_softcap is None:
        return smoothing, z, None
    cap = _check_real("logit_softcap", logit_softcap, "a number or None")
    if not 0.0 < cap < math.inf:
        msg = f"logit_softcap: got {cap}; expected 0 < logit_softcap < inf"
        raise ValueError(msg)
    return smoothing, z, cap


def _logits(
    backend: Backend, logits: Array, axis: object, first: str
) -> tuple[Array, int, int, Precision]:
    """Check the first argument: its array, class axis, number of classes and precision."""
    logits = backend.array(logits, logits)
    dtype = _check_dtype(backend, first, logits, FLOATS)
    shape = shape_of(logits)
    axis = _check_axis(axis, shape, first)
    classes = _check_classes(shape, axis, first)
    xp = backend.namespace(logits)
    wide = backend.has_float64(logits)
    compute = xp.float64 if dtype == "float64" else xp.float32
    precision = Precision(
        compute=compute,
        accumulate=xp.float64 if wide else compute,
        recover=dtype in ("float32", "float64"),
        compensate=not wide,
    )
    return logits, axis, classes, precision


def _target(
    backend: Backend, target: object, logits: Array, axis: int, classes: int, first: str
) -> tuple[Array, bool]:
    """Check a target's dtype and shape together: both must say hard, or both soft."""
    target = _convert(backend, "target", target, logits, first)
    dtype = _check_dtype(
        backend,
        "target",
        target,
        INTEGERS + FLOATS,
        ": integers for class indices, floats for class probabilities",
    )
    full = shape_of(logits)
    rows = full[:axis] + full[axis + 1 :]
    shape = shape_of(target)
    soft = dtype in FLOATS
    wanted, other = (full, rows) if soft else (rows, full)
    if _agree(shape, wanted):
        return target, soft
    if _agree(shape, other):
        msg = (
            f"target: got dtype {dtype} in shape {shape}, the shape of class indices; "
            "expected integers, or class probabilities in the shape "
            f"{full} of {first}"
            if soft
            else f"target: got dtype {dtype} in shape {shape}, the shape of {first}; expected "
            f"class indices in shape {rows}, or class probabilities as floats "
            f"(hint: one_hot(indices, {classes}) as floats, or argmax over axis {axis})"
        )
        raise TypeError(msg)
    kind = "class probabilities" if soft else "class indices"
    msg = (
        f"target: got shape {shape} with dtype {dtype}; expected {kind} in shape {wanted} for "
        f"{first} of shape {full} with classes on axis {axis}"
    )
    raise ValueError(msg)


def _indices(
    backend: Backend, target: Array, like: Array, axis: int, classes: int, ignore_index: int
) -> tuple[Array, bool, int | None]:
    """Check class indices wherever they can be seen, and lay them beside their rows.

    Returns them with whether they were seen, and the index of the rows to ignore: None where there
    was seen to be no such row.
    """
    seen = backend.is_concrete(target)
    ignored: int | None = ignore_index
    if seen:
        values = backend.to_numpy(target)
        wrong = (values < 0) | (values >= classes)
        ignorable = values == ignore_index
        if not ignorable.any():
            ignored = None
        wrong &= ~ignorable
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            msg = (
                f"target: got {values[at]} at position {at[0] if len(at) == 1 else at}; expected "
                f"0 <= target < {classes}, or ignore_index={ignore_index}"
            )
            raise IndexError(msg)
    xp = backend.namespace(like)
    dtype = xp.int64 if backend.has_float64(like) else xp.int32
    return xp.expand_dims(xp.astype(target, dtype, copy=False), axis=axis), seen, ignored


def _weight(
    backend: Backend, weight: object, logits: Array, axis: int, classes: int, dtype: Any, first: str
) -> Array | None:
    if weight is None:
        return None
    array = _convert(backend, "weight", weight, logits, first)
    _check_dtype(backend, "weight", array, FLOATS + INTEGERS)
    if not _agree(shape_of(array), (classes,)):
        msg = (
            f"weight: got shape {shape_of(array)}; expected {(classes,)}, one weight for each "
            f"class of {first} of shape {shape_of(logits)} on axis {axis}"
        )
        raise ValueError(msg)
    xp = backend.namespace(logits)
    shape = tuple(classes if d == axis else 1 for d in range(len(shape_of(logits))))
    return xp.reshape(xp.astype(array, dtype, copy=False), shape)


def _sample_weight(
    backend: Backend, sample_weight: object, logits: Array, axis: int, dtype: Any, first: str
) -> Array | None:
    if sample_weight is None:
        return None
    array = _convert(backend, "sample_weight", sample_weight, logits, first)
    _check_dtype(backend, "sample_weight", array, FLOATS + INTEGERS)
    full = shape_of(logits)
    rows = full[:axis] + full[axis + 1 :]
    if not _agree(shape_of(array), rows):
        msg = (
            f"sample_weight: got shape {shape_of(array)}; expected {rows}, one weight for each "
            f"row of {first} of shape {full} with classes on axis {axis}"
        )
        raise ValueError(msg)
    xp = backend.namespace(logits)
    return xp.expand_dims(xp.astype(array, dtype, copy=False), axis=axis)


def _normalizer(
    backend: Backend, normalizer: object, reduction: Reduction, logits: Array, dtype: Any
) -> Array | None:
    if normalizer is None:
        return None
    if reduction != "mean":
        msg = (
            f"normalizer: got one with reduction={reduction!r}; expected reduction='mean', whose "
            "divisor it replaces"
        )
        raise ValueError(msg)
    array = _convert(backend, "normalizer", normalizer, logits, "logits")
    _check_dtype(backend, "normalizer", array, FLOATS + INTEGERS)
    if shape_of(array) != ():
        msg = f"normalizer: got shape {shape_of(array)}; expected a number or a 0-d array"
        raise ValueError(msg)
    return backend.namespace(logits).astype(array, dtype, copy=False)


def elementwise(backend: Backend, operation: Operation, logits: Array, *, axis: object) -> Problem:
    """Pose the problem of a function that maps logits to an array of their shape."""
    logits, axis, classes, precision = _logits(backend, logits, axis, "logits")
    return Problem(backend, operation, Spec(axis, classes, precision), (logits,))


def rowwise(
    backend: Backend,
    operation: Operation,
    logits: Array,
    target: object,
    *,
    first: str = "logits",
    axis: object,
    weight: object,
    ignore_index: object,
    reduction: object,
    sample_weight: object = None,
    label_smoothing: object = 0.0,
    z_loss: object = 0.0,
    logit_softcap: object = None,
    normalizer: object = None,
) -> Problem:
    """Pose the problem of a loss, with one value a row and a reduction over the rows."""
    logits, axis, classes, precision = _logits(backend, logits, axis, first)
    target, soft = _target(backend, target, logits, axis, classes, first)
    ignore = _check_integer("ignore_index", ignore_index)
    if soft and ignore != -100:  # noqa: PLR2004 -- the default, which is as good as not given
        msg = (
            f"ignore_index: got {ignore} with a soft target; expected class indices for target, "
            "or a sample_weight of 0 for the rows to ignore"
        )
        raise TypeError(msg)
    smoothing, z, cap = _check_options(label_smoothing, z_loss, logit_softcap)
    reduction = _check_reduction(reduction)
    seen, ignored = False, None
    if not soft:
        target, seen, ignored = _indices(backend, target, logits, axis, classes, ignore)
    spec = Spec(
        axis=axis,
        classes=classes,
        precision=precision,
        soft=soft,
        checked=seen,
        ignore_index=ignored,
        label_smoothing=smoothing,
        z_loss=z,
        logit_softcap=cap,
    )
    compute = precision.compute
    class_weight = _weight(backend, weight, logits, axis, classes, compute, first)
    row_weight = _sample_weight(backend, sample_weight, logits, axis, compute, first)
    divisor = _normalizer(backend, normalizer, reduction, logits, precision.accumulate)
    if divisor is None and reduction in ("mean", "weighted_mean"):
        xp = backend.namespace(logits)
        with backend.evaluating():
            divisor = reductions.divisor(xp, spec, reduction, target, class_weight, row_weight)
    return Problem(
        backend,
        operation,
        spec,
        (logits, target, class_weight),
        reduction,
        row_weight,
        divisor,
    )


def cotangent(backend: Backend, value: object, result: Array) -> Array:
    """Check the cotangent of a value."""
    array = _convert(backend, "cotangent", value, result, "the value")
    _check_dtype(backend, "cotangent", array, FLOATS + INTEGERS)
    if not _agree(shape_of(array), shape_of(result)):
        msg = (
            f"cotangent: got shape {shape_of(array)}; expected {shape_of(result)}, "
            "the shape of the value"
        )
        raise ValueError(msg)
    return array
