"""From arguments to a checked call. Every error of xentx's losses but that of an index is here.

Whatever the framework, a problem is the same: arrays of that framework as they were given, and a
hashable `LossSpec` of everything else. So the texts of the errors are the same too: the
argument, what came, what was wanted.

All but the class indices can be checked without seeing a value. That is done once for each kind of
arguments, their dtypes, shapes and options, and remembered: for ten classes it takes longer than
the loss. The native kernel takes the arrays as they are; `prepare` lays them out for the core.
"""

import contextlib
import math
from collections.abc import Callable, Hashable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from xentx import _registry
from xentx._backend import Backend, Operation, plain
from xentx._calls import (
    Kind,
    LinearProblem,
    Problem,
    engines_for,
    linear_of,
    precision_of,
    shape_of,
    widest,
)
from xentx._core._spec import DEFAULTS, OPERAND, OPTIONS, LossSpec, Precision, in_range, is_given
from xentx._types import Array

Reduction = Literal["none", "mean", "sum", "weighted_mean"]
Accuracy = Literal["default", "exact"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED + UNSIGNED

# What arguments may be, where it isn't floats or integers alike.
_DTYPES: dict[str, tuple[tuple[str, ...], str]] = {
    "target": (
        INTEGERS + FLOATS,
        ": integers for class indices, floats for class probabilities",
    ),
    "head": (FLOATS, ""),
    "bias": (FLOATS, ""),
}
_WIDE = 8  # bytes


def _agree(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    return len(a) == len(b) and all(
        m == n or m is None or n is None for m, n in zip(a, b, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _array(backend: Backend, name: str, value: object, like: Array) -> Array:
    """Return an argument as the framework's array, whose refusal doesn't know its name."""
    try:
        return backend.array(value, like)
    except (TypeError, ValueError) as error:
        raise _named(name, error) from None


def _named(name: str, error: TypeError | ValueError) -> Exception:
    return type(error)(f"{name}: {error}")


def _convert(backend: Backend, name: str, value: object, like: Array, first: str) -> Array:
    """Make an argument an array of the logits' framework.

    NumPy's arrays and lists are at home everywhere; any other mixture is a mistake.
    """
    if type(value) is type(like):  # which needs no look at whose it is
        try:
            return backend.array(value, like)
        except (TypeError, ValueError) as error:
            raise _named(name, error) from None
    if isinstance(value, list | tuple | Real):
        # Lists of different lengths are no array, which the error below says.
        with contextlib.suppress(TypeError, ValueError):
            value = np.asarray(value)
    owner = _registry.find(value)
    if owner is backend:
        return _array(backend, name, value, like)
    if owner is not None and owner.name == "numpy":
        array = _from_numpy(backend, name, value, like)
        is_left = array.dtype.itemsize == _WIDE and not backend.has_float64(like)
        return array if is_left else _array(backend, name, array, like)
    if owner is not None:
        msg = (
            f"{name}: got {_registry.describe(value)} where {first} is "
            f"{_registry.describe(like)}; expected both of one framework, or {name} of NumPy"
        )
        raise TypeError(msg)
    msg = f"{name}: got {_registry.describe(value)}; expected an array or a list of numbers"
    raise TypeError(msg)


def _from_numpy(backend: Backend, name: str, value: object, like: Array) -> np.ndarray[Any, Any]:
    """Return NumPy's values in a dtype that the framework has, beside `like`.

    JAX without its 64-bit mode would keep the low 32 bits of an integer. Class indices that don't
    fit are returned as they are: `indices` raises their error.
    """
    array = plain(value)
    wanted, hint = _DTYPES.get(name, (FLOATS + INTEGERS, ""))
    _check_dtype_name(name, array.dtype.name, wanted, hint)
    if array.dtype.itemsize < _WIDE or backend.has_float64(like):
        return array
    if name == "target" and array.dtype.kind in "iu":
        narrow = array.astype(np.int32)
        return narrow if np.array_equal(narrow, array) else array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _check_dtype(
    backend: Backend, name: str, array: Array, wanted: Sequence[str], hint: str = ""
) -> str:
    return _check_dtype_name(name, backend.dtype_name(array), wanted, hint)


def _check_dtype_name(name: str, dtype: str, wanted: Sequence[str], hint: str) -> str:
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
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
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


def _check_classes(shape: tuple[int | None, ...], axis: int, first: str) -> int | None:
    classes = shape[axis]
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


def _operands(
    backend: Backend, options: dict[str, Any], like: Array, first: str
) -> tuple[dict[str, Any], tuple[Array, ...]]:
    """Tell which of the options are arrays, and return those arrays.

    Returns the options, a number or OPERAND each, and the arrays. Python's and NumPy's numbers are
    read. An array of the framework may be traced or differentiated: it stays an array, and its
    value is checked where it is concrete.
    """
    numbers: dict[str, Any] = {}
    arrays = []
    for name, option in options.items():
        number = option
        if option is not None and not isinstance(option, Real):
            number, array = _number(backend, name, option, like, first)
            if array is not None:
                arrays.append(array)
        numbers[name] = number
    return numbers, tuple(arrays)


def _number(
    backend: Backend, name: str, option: object, like: Array, first: str
) -> tuple[object, Array | None]:
    """Return the number that an option is, or OPERAND and an array."""
    of_numpy = isinstance(option, np.ndarray | np.generic)
    if not of_numpy and _registry.find(option) is None:
        return option, None  # whose type `check_options` refuses
    array = np.asarray(option) if of_numpy else _convert(backend, name, option, like, first)
    owner = _registry.require(name, array)
    _check_dtype(owner, name, array, FLOATS + INTEGERS)
    if shape_of(array) != ():
        msg = f"{name}: got shape {shape_of(array)}; expected a number or a 0-d array"
        raise ValueError(msg)
    if of_numpy:
        return float(array), None
    if owner.is_concrete(array):
        check_options({name: float(owner.to_numpy(array))})
    return OPERAND, array


def traced_z_loss(backend: Backend, option: object, like: Array) -> Any:
    """Check a z-loss that goes with no problem: a number, or an array which is NaN out of range."""
    numbers, operands = _operands(backend, {"z_loss": option}, like, "state")
    z = check_options(numbers)["z_loss"]
    if z is not OPERAND:
        return z
    return in_range(backend.namespace(like), "z_loss", operands[0])


# Which values an option may have, and how that is said. Whatever is not None is a number.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "label_smoothing": (lambda value: 0.0 <= value <= 1.0, "0 <= label_smoothing <= 1"),
    "z_loss": (lambda value: 0.0 <= value < math.inf, "0 <= z_loss < inf"),
    "logit_softcap": (lambda value: 0.0 < value < math.inf, "0 < logit_softcap < inf"),
    "temperature": (lambda value: 0.0 < value < math.inf, "0 < temperature < inf"),
}


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Check the options that are numbers; one that is an array is OPERAND, and is left so."""
    checked = dict(options)
    for name, option in options.items():
        may_be_none = DEFAULTS[name] is None
        if option is OPERAND or (option is None and may_be_none):
            continue
        wanted = "a number or None" if may_be_none else "a number"
        number = checked[name] = _check_real(name, option, wanted)
        is_in_range, expected = _RANGES[name]
        if not is_in_range(number):
            msg = f"{name}: got {number}; expected {expected}"
            raise ValueError(msg)
    return checked


def check_block(backend: Backend, start: Any, size: int | None, classes: object) -> Any:
    """Check that a block of classes lies among all of them, if it can be seen to; return `start`.

    On many devices one program runs, where the number of the device is traced.
    """
    count = _check_integer("classes", classes)
    if size is None:
        msg = (
            "logits: got a block with an unknown number of classes; expected one that is known "
            "when the function is traced"
        )
        raise ValueError(msg)
    if backend.owns(start) and shape_of(start) == ():
        _check_dtype(backend, "start", start, INTEGERS)
        if not backend.is_concrete(start):
            return start
        start = int(backend.to_numpy(start))
    first = _check_integer("start", start)
    if not 0 <= first <= count - size:
        msg = (
            f"start: got {first} for a block of {size} classes; expected 0 <= start <= "
            f"{count - size}, where all blocks have {count} classes"
        )
        raise ValueError(msg)
    return first


def _logits(
    backend: Backend, logits: Array, axis: object, first: str, *, exact: bool = False
) -> tuple[int, int | None, Precision]:
    """Check the first argument: its class axis, number of classes and precision."""
    dtype = _check_dtype(backend, first, logits, FLOATS)
    shape = shape_of(logits)
    axis = _check_axis(axis, shape, first)
    classes = _check_classes(shape, axis, first)
    return axis, classes, precision_of(backend, logits, dtype, exact=exact)


def _target(
    backend: Backend, target: Array, logits: Array, axis: int, classes: int | None, first: str
) -> bool:
    """Check a target's dtype and shape together, both must say hard, or both soft; say which."""
    dtype = _check_dtype(backend, "target", target, *_DTYPES["target"])
    full = shape_of(logits)
    rows = full[:axis] + full[axis + 1 :]
    shape = shape_of(target)
    soft = dtype in FLOATS
    wanted, other = (full, rows) if soft else (rows, full)
    if _agree(shape, wanted):
        return soft
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


def _check_weight(
    backend: Backend,
    weight: Array | None,
    logits: Array,
    axis: int,
    classes: int | None,
    first: str,
) -> None:
    if weight is None:
        return
    _check_dtype(backend, "weight", weight, FLOATS + INTEGERS)
    if not _agree(shape_of(weight), (classes,)):
        msg = (
            f"weight: got shape {shape_of(weight)}; expected {(classes,)}, one weight for each "
            f"class of {first} of shape {shape_of(logits)} on axis {axis}"
        )
        raise ValueError(msg)


def _check_sample_weight(
    backend: Backend, sample_weight: Array | None, logits: Array, axis: int, first: str
) -> None:
    if sample_weight is None:
        return
    _check_dtype(backend, "sample_weight", sample_weight, FLOATS + INTEGERS)
    full = shape_of(logits)
    rows = full[:axis] + full[axis + 1 :]
    if not _agree(shape_of(sample_weight), rows):
        msg = (
            f"sample_weight: got shape {shape_of(sample_weight)}; expected {rows}, one weight for "
            f"each row of {first} of shape {full} with classes on axis {axis}"
        )
        raise ValueError(msg)


def _check_normalizer(backend: Backend, normalizer: Array | None, reduction: Reduction) -> None:
    if normalizer is None:
        return
    if reduction != "mean":
        msg = (
            f"normalizer: got one with reduction={reduction!r}; expected reduction='mean', whose "
            "divisor it replaces"
        )
        raise ValueError(msg)
    _check_dtype(backend, "normalizer", normalizer, FLOATS + INTEGERS)
    if shape_of(normalizer) != ():
        msg = f"normalizer: got shape {shape_of(normalizer)}; expected a number or a 0-d array"
        raise ValueError(msg)


def _check_accuracy(backend: Backend, precision: object, logits: Array) -> bool:
    choices = get_args(Accuracy)
    if precision not in choices:
        msg = f"precision: got {precision!r}; expected {_listed([repr(c) for c in choices])}"
        raise ValueError(msg)
    exact = precision == "exact"
    if exact and not backend.has_float64(logits):
        msg = (
            "precision: got 'exact' where the framework has no float64; expected 'default' "
            "(hint: jax.enable_x64)"
        )
        raise ValueError(msg)
    return exact


# What was found out about arguments, by all that it depends on.
_KINDS: dict[Hashable, Kind] = {}
_MOST_KINDS = 4096


def _form(array: Array) -> Hashable:
    return array.dtype, tuple(array.shape)


def _remembered(backend: Backend, key: tuple[object, ...]) -> Kind | None:
    """Return the kind that was found for `key` before.

    Shapes of symbols are not remembered, and an option that can't be hashed is an error that the
    checks know the words for.
    """
    if backend.is_compiling():
        return None
    try:
        return _KINDS.get(key)
    except TypeError:
        return None


def _remember(backend: Backend, key: tuple[object, ...], kind: Kind) -> Kind:
    if not backend.is_compiling():
        if len(_KINDS) >= _MOST_KINDS:
            _KINDS.clear()
        with contextlib.suppress(TypeError):
            _KINDS[key] = kind
    return kind


def elementwise(
    backend: Backend, operation: Operation, logits: Array, *, axis: object, precision: object
) -> Problem:
    """Pose the problem of a function that maps logits to an array of their shape."""
    logits = _array(backend, "logits", logits, logits)
    wide = backend.has_float64(logits)
    key = (backend, operation, type(logits), _form(logits), wide, axis, type(axis), precision)
    kind = _remembered(backend, key)
    if kind is None:
        exact = _check_accuracy(backend, precision, logits)
        place, classes, dtypes = _logits(backend, logits, axis, "logits", exact=exact)
        spec = LossSpec(operation.NAME, place, classes, dtypes, exact=exact)
        kind = Kind(backend, spec, engines_for(backend, spec, None, logits))
        _remember(backend, key, kind)
    return Problem(kind, (logits, None, None, None, None))


def rowwise(
    backend: Backend,
    operation: Operation,
    logits: Array,
    target: Any,
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
    temperature: object = 1.0,
    normalizer: object = None,
    precision: object = "default",
) -> Problem:
    """Pose the problem of a loss, with one value a row and a reduction over the rows."""
    logits = _array(backend, first, logits, logits)
    target = _convert(backend, "target", target, logits, first)
    if weight is not None:
        weight = _convert(backend, "weight", weight, logits, first)
    if sample_weight is not None:
        sample_weight = _convert(backend, "sample_weight", sample_weight, logits, first)
    if normalizer is not None:
        normalizer = _convert(backend, "normalizer", normalizer, logits, first)
    arrays = (logits, target, weight, sample_weight, normalizer)
    operands: tuple[Array, ...] = ()
    options = (label_smoothing, z_loss, logit_softcap, temperature)
    types: tuple[type, ...] = ()
    if logit_softcap is not None or not (
        type(label_smoothing) is type(z_loss) is type(temperature) is float
    ):
        named = dict(zip(OPTIONS, options, strict=True))
        numbers, operands = _operands(backend, named, logits, first)
        options = tuple(numbers.values())
        types = tuple(map(type, options))
    key = (
        backend,
        operation,
        backend.has_float64(logits),
        type(logits),  # libraries that share a backend have dtypes of their own
        logits.dtype,
        tuple(logits.shape),
        target.dtype,
        tuple(target.shape),
        None if weight is None else _form(weight),
        None if sample_weight is None else _form(sample_weight),
        None if normalizer is None else _form(normalizer),
        options,
        axis,
        ignore_index,
        reduction,
        precision,
        # True is 1 to a dict, and an error to a check.
        type(axis),
        type(ignore_index),
        types,
    )
    kind = _remembered(backend, key)
    if kind is None:
        kind = _check_rowwise(
            backend,
            operation,
            arrays,
            dict(zip(OPTIONS, options, strict=True)),
            first=first,
            axis=axis,
            ignore_index=ignore_index,
            reduction=reduction,
            precision=precision,
        )
        _remember(backend, key, kind)
    if not kind.is_sized and hasattr(backend, "of_sizes"):
        every, axis = range(len(logits.shape)), kind.spec.axis
        rows = [d for d in every if d != axis]
        target = backend.of_sizes("target", target, logits, every if kind.spec.soft else rows)
        weight = backend.of_sizes("weight", weight, logits, [axis])
        sample_weight = backend.of_sizes("sample_weight", sample_weight, logits, rows)
        arrays = (logits, target, weight, sample_weight, normalizer)
    return Problem(kind, (*arrays, *operands) if operands else arrays)


def _check_rowwise(
    backend: Backend,
    operation: Operation,
    arrays: tuple[Any, ...],
    options: dict[str, Any],
    *,
    first: str,
    axis: object,
    ignore_index: object,
    reduction: object,
    precision: object,
) -> Kind:
    """Check all of a loss's arguments but the values of its class indices."""
    logits, target, weight, sample_weight, normalizer = arrays
    exact = _check_accuracy(backend, precision, logits)
    place, classes, dtypes = _logits(backend, logits, axis, first, exact=exact)
    soft = _target(backend, target, logits, place, classes, first)
    ignore: Any = ignore_index
    if ignore is not None and not isinstance(ignore, getattr(backend, "symbols", ())):
        ignore = _check_integer("ignore_index", ignore)
        if not -(2**63) <= ignore < 2**63:
            msg = f"ignore_index: got {ignore}; expected -2**63 <= ignore_index < 2**63"
            raise ValueError(msg)
    if soft and ignore not in (None, -100):  # the default is as good as not given
        msg = (
            f"ignore_index: got {ignore} with a soft target; expected class indices for target, "
            "or a sample_weight of 0 for the rows to ignore"
        )
        raise TypeError(msg)
    numbers = check_options(options)
    chosen = _check_reduction(reduction)
    _check_weight(backend, weight, logits, place, classes, first)
    _check_sample_weight(backend, sample_weight, logits, place, first)
    _check_normalizer(backend, normalizer, chosen)
    spec = LossSpec(
        operation.NAME,
        place,
        classes,
        dtypes,
        soft=soft,
        reduction=chosen,
        ignore_index=None if soft else ignore,
        exact=exact,
        **numbers,
    )
    dtype = backend.dtype_name(target)
    fits = dtype in ("int32", "int64", *FLOATS)
    sized = (logits, target, weight, sample_weight)
    is_sized = all(array is None or None not in shape_of(array) for array in sized)
    return Kind(backend, spec, engines_for(backend, spec, dtype, logits), fits, is_sized)


def binary(
    backend: Backend,
    operation: Operation,
    logits: Array,
    target: Any,
    *,
    weight: object,
    pos_weight: object,
    label_smoothing: object,
    reduction: object,
    precision: object,
) -> Problem:
    """Pose the problem of a loss of each logit: a row of one class, against 0.

    The target becomes the shares of the negative and of the positive class on a last axis, with
    smoothing and `pos_weight` in them.
    """
    logits = _array(backend, "logits", logits, logits)
    dtype = _check_dtype(backend, "logits", logits, FLOATS)
    shape = shape_of(logits)
    target = _convert(backend, "target", target, logits, "logits")
    _check_dtype(backend, "target", target, FLOATS + INTEGERS)
    if not _agree(shape_of(target), shape):
        msg = f"target: got shape {shape_of(target)}; expected {shape}, the shape of logits"
        raise ValueError(msg)
    exact = _check_accuracy(backend, precision, logits)
    numbers, operands = _operands(backend, {"label_smoothing": label_smoothing}, logits, "logits")
    smoothing = check_options(numbers)["label_smoothing"]
    chosen = _check_reduction(reduction)
    dtypes = precision_of(backend, logits, dtype, exact=exact)
    xp, compute = backend.namespace(logits), dtypes.compute
    # Both shares are formed from the target: 1 - positive would lose the digits of a small one.
    positive = xp.astype(target, compute, copy=False)
    negative = 1.0 - positive
    if smoothing is OPERAND:
        given = xp.astype(operands[0], compute, copy=False)
        smoothing = in_range(xp, "label_smoothing", given)
    if is_given(smoothing):
        positive, negative = (
            (1.0 - smoothing) * share + 0.5 * smoothing for share in (positive, negative)
        )
    by_logit = {}
    for name, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is None:
            continue
        array = _convert(backend, name, value, logits, "logits")
        _check_dtype(backend, name, array, FLOATS + INTEGERS)
        if not _broadcasts(shape_of(array), shape):
            msg = f"{name}: got shape {shape_of(array)}; expected one that broadcasts to {shape}"
            raise ValueError(msg)
        by_logit[name] = xp.astype(array, compute, copy=False) * xp.ones_like(positive)
    if "pos_weight" in by_logit:
        positive = positive * by_logit["pos_weight"]
    shares = xp.concat([xp.expand_dims(q, axis=-1) for q in (negative, positive)], axis=-1)
    normalizer = None
    if chosen == "mean" and weight is not None:  # the number of logits, as in every framework
        normalizer = xp.sum(xp.ones_like(positive), dtype=dtypes.accumulate)
    # The mean of rows with sample weights divides by the sum of these.
    reduced = "mean" if chosen == "weighted_mean" else chosen
    spec = LossSpec(
        operation.NAME, len(shape), 2, dtypes, soft=True, reduction=reduced, exact=exact
    )
    kind = Kind(backend, spec)
    rows = xp.expand_dims(logits, axis=-1)
    return Problem(kind, (rows, shares, None, by_logit.get("weight"), normalizer))


def _broadcasts(shape: tuple[int | None, ...], to: tuple[int | None, ...]) -> bool:
    """Whether an array of a shape can be broadcast to another, as far as sizes are known."""
    if len(shape) > len(to):
        return False
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return all(m == n or m in (1, None) or n is None for m, n in pairs)


class _StandIn:
    """Logits that are never formed, as far as the checks look at any."""

    def __init__(self, xp: Any, hidden: Array, shape: tuple[int | None, ...], dtype: Any) -> None:
        self._xp = xp
        self.shape = shape
        self.dtype = dtype
        self.device = getattr(hidden, "device", None)

    def __array_namespace__(self, **_: Any) -> Any:
        return self._xp


def linear(
    backend: Backend,
    operation: Operation,
    hidden: Array,
    head: Array,
    target: Array,
    *,
    bias: object,
    weight: object,
    ignore_index: object,
    label_smoothing: object,
    z_loss: object,
    logit_softcap: object,
    temperature: object,
    reduction: object,
    chunk: object,
    sample_weight: object = None,
    normalizer: object = None,
    precision: object = "default",
) -> LinearProblem:
    """Pose the problem of `cross_entropy` on logits that stand for ``hidden @ head.T + bias``."""
    hidden = _array(backend, "hidden", hidden, hidden)
    head = _convert(backend, "head", head, hidden, "hidden")
    target = _convert(backend, "target", target, hidden, "hidden")
    bias, *others = (
        None if value is None else _convert(backend, name, value, hidden, "hidden")
        for name, value in (
            ("bias", bias),
            ("weight", weight),
            ("sample_weight", sample_weight),
            ("normalizer", normalizer),
        )
    )
    options = dict(zip(OPTIONS, (label_smoothing, z_loss, logit_softcap, temperature), strict=True))
    numbers, operands = _operands(backend, options, hidden, "hidden")
    names = {"hidden": hidden, "head": head} | ({} if bias is None else {"bias": bias})
    dtypes = [_check_dtype(backend, name, array, FLOATS) for name, array in names.items()]
    shape, classes = _check_shapes(hidden, head, bias)
    xp = backend.namespace(hidden)
    like = xp.zeros((), dtype=getattr(xp, widest(dtypes))).dtype
    logits = _StandIn(xp, hidden, (*shape, classes), like)
    kind = _check_rowwise(
        backend,
        operation,
        (logits, target, *others),
        numbers,
        first="hidden @ head.T",
        axis=-1,
        ignore_index=ignore_index,
        reduction=reduction,
        precision=precision,
    )
    spec = kind.spec
    static = linear_of(
        backend,
        (hidden, head, bias),
        {
            name: getattr(spec, name)
            for name in ("operation", "soft", "ignore_index", "exact", *OPTIONS)
        },
        reduction=spec.reduction,
        chunk=_check_chunk(chunk),
        target=backend.dtype_name(target),
    )
    if not kind.is_sized and hasattr(backend, "of_sizes"):
        weight, sample_weight, normalizer = others
        rows = range(len(shape))
        target = backend.of_sizes("target", target, hidden, rows)
        sample_weight = backend.of_sizes("sample_weight", sample_weight, hidden, rows)
        others = [weight, sample_weight, normalizer]
    return LinearProblem(static, (hidden, head, bias, target, *others, *operands))


def _check_shapes(
    hidden: Array, head: Array, bias: Array | None
) -> tuple[tuple[int | None, ...], int | None]:
    """Check that the factors fit; return the shape of the rows and the number of classes."""
    shape, head_shape = shape_of(hidden), shape_of(head)
    if not shape:
        msg = "hidden: got a 0-dimensional array; expected at least an axis of features"
        raise ValueError(msg)
    if len(head_shape) != 2 or not _agree(head_shape[1:], shape[-1:]):  # noqa: PLR2004
        msg = (
            f"head: got shape {head_shape}; expected (classes, {shape[-1]}) for hidden of shape "
            f"{shape}"
        )
        raise ValueError(msg)
    for name, given, axis, what in (
        ("hidden", shape, len(shape) - 1, "features"),
        ("head", head_shape, 0, "classes"),
        ("head", head_shape, 1, "features"),
    ):
        if given[axis] is None:
            msg = (
                f"{name}: got shape {given} with an unknown number of {what} on axis {axis}; "
                "expected one that is known when the function is traced"
            )
            raise ValueError(msg)
    classes = _check_classes(head_shape, 0, "head")
    if bias is not None and not _agree(shape_of(bias), (classes,)):
        msg = (
            f"bias: got shape {shape_of(bias)}; expected {(classes,)} for head of shape "
            f"{head_shape}"
        )
        raise ValueError(msg)
    return shape[:-1], classes


def _check_chunk(chunk: object) -> int | None:
    if isinstance(chunk, str):
        if chunk == "auto":
            return None
        msg = f"chunk: got {chunk!r}; expected 'auto' or a number of rows"
        raise ValueError(msg)
    size = _check_integer("chunk", chunk)
    if size < 1:
        msg = f"chunk: got {size}; expected at least 1 row"
        raise ValueError(msg)
    return size


def cotangent(backend: Backend, value: object, like: Array, shape: tuple[int | None, ...]) -> Array:
    """Check the cotangent of a value of some shape, beside an array of the call."""
    array = _convert(backend, "cotangent", value, like, "the value")
    _check_dtype(backend, "cotangent", array, FLOATS + INTEGERS)
    if not _agree(shape_of(array), shape):
        msg = f"cotangent: got shape {shape_of(array)}; expected {shape}, the shape of the value"
        raise ValueError(msg)
    return array
