"""Checks of single arguments. Errors name the argument, its value and the expected value."""

import contextlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from xentx import _registry
from xentx._backend import Backend, plain
from xentx._calls import precision_of, shape_of
from xentx._core._spec import OPERAND, OPTIONS, Precision, in_range
from xentx._types import Array

Reduction = Literal["none", "mean", "sum", "weighted_mean"]
Accuracy = Literal["default", "exact"]


class LossOptions(TypedDict, total=False):
    """The options of all forms of `cross_entropy`, for overloads: `return_normalizer` is apart."""

    weight: Array | None
    sample_weight: Array | None
    ignore_index: int | None
    label_smoothing: float | Array
    z_loss: float | Array
    logit_softcap: float | Array | None
    temperature: float | Array
    reduction: Reduction
    normalizer: float | Array | None


FLOATS = ("float16", "bfloat16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED + UNSIGNED

# Dtypes of arguments that do not accept all floats and integers.
_DTYPES: dict[str, tuple[tuple[str, ...], str]] = {
    "target": (
        INTEGERS + FLOATS,
        ": integers for class indices, floats for class probabilities",
    ),
    "head": (FLOATS, ""),
    "bias": (FLOATS, ""),
    "reference_logits": (FLOATS, ""),
    "reference_hidden": (FLOATS, ""),
    "reference_head": (FLOATS, ""),
    "reference_bias": (FLOATS, ""),
    "where": (("bool",), ""),
}
_WIDE = 8  # bytes


def shapes_agree(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    return len(a) == len(b) and all(
        m == n or m is None or n is None for m, n in zip(a, b, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def as_array(backend: Backend, name: str, value: object, like: Array) -> Array:
    """Convert an argument to the framework's array. Errors name the argument."""
    try:
        return backend.array(value, like)
    except (TypeError, ValueError) as error:
        raise _named(name, error) from None


def _named(name: str, error: TypeError | ValueError) -> Exception:
    return type(error)(f"{name}: {error}")


def convert(backend: Backend, name: str, value: object, like: Array, first: str) -> Array:
    """Convert an argument to an array of the logits' framework.

    NumPy's arrays and lists are accepted everywhere. Other mixtures of frameworks are errors.
    """
    if type(value) is type(like):  # then it needs no search for its backend
        try:
            return backend.array(value, like)
        except (TypeError, ValueError) as error:
            raise _named(name, error) from None
    if isinstance(value, list | tuple | Real):
        # Lists of different lengths raise the error below.
        with contextlib.suppress(TypeError, ValueError):
            value = np.asarray(value)
    owner = _registry.find(value)
    if owner is backend:
        return as_array(backend, name, value, like)
    if owner is not None and owner.name == "numpy":
        array = _from_numpy(backend, name, value, like)
        is_left = array.dtype.itemsize == _WIDE and not backend.has_float64(like)
        return array if is_left else as_array(backend, name, array, like)
    if owner is not None:
        msg = (
            f"{name}: got {_registry.describe(value)} where {first} is "
            f"{_registry.describe(like)}; expected both of one framework, or {name} of NumPy"
        )
        raise TypeError(msg)
    msg = f"{name}: got {_registry.describe(value)}; expected an array or a list of numbers"
    raise TypeError(msg)


def _from_numpy(backend: Backend, name: str, value: object, like: Array) -> np.ndarray[Any, Any]:
    """Return the values of a NumPy array in a dtype that the framework of `like` has.

    JAX without its 64-bit mode would use the low 32 bits of an integer. Class indices that do not
    fit into 32 bits are returned unchanged, and `indices` raises the error.
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


def check_dtype(
    backend: Backend, name: str, array: Array, wanted: Sequence[str], hint: str = ""
) -> str:
    return _check_dtype_name(name, backend.dtype_name(array), wanted, hint)


def _check_dtype_name(name: str, dtype: str, wanted: Sequence[str], hint: str) -> str:
    if dtype not in wanted:
        msg = f"{name}: got dtype {dtype}; expected {_listed(wanted)}{hint}"
        raise TypeError(msg)
    return dtype


def check_real(name: str, value: object, wanted: str) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        msg = f"{name}: got {_registry.describe(value)}; expected {wanted}"
        raise TypeError(msg)
    return float(value)


def check_integer(name: str, value: object) -> int:
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
    axis = check_integer("axis", axis)
    if not -ndim <= axis < ndim:
        msg = f"axis: got {axis} for {first} of shape {shape}; expected {-ndim} <= axis < {ndim}"
        raise ValueError(msg)
    return axis % ndim


def check_classes(shape: tuple[int | None, ...], axis: int, first: str) -> int | None:
    classes = shape[axis]
    if classes == 0:
        msg = f"{first}: got shape {shape} with 0 classes on axis {axis}; expected at least 1"
        raise ValueError(msg)
    return classes


def check_reduction(value: object) -> Reduction:
    choices = get_args(Reduction)
    if value not in choices:
        msg = f"reduction: got {value!r}; expected {_listed([repr(c) for c in choices])}"
        raise ValueError(msg)
    return value  # type: ignore[return-value]


def split_options(
    backend: Backend, options: dict[str, Any], like: Array, first: str
) -> tuple[dict[str, Any], tuple[Array, ...]]:
    """Separate the options that are arrays.

    Returns the options, each a number or OPERAND, and the arrays. Numbers of Python and NumPy are
    converted to floats. An array of the framework may be traced or differentiated, so it stays an
    array. Its value is checked if it is concrete.
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
    """Return the value of an option and None, or OPERAND and an array."""
    of_numpy = isinstance(option, np.ndarray | np.generic)
    if not of_numpy and _registry.find(option) is None:
        return option, None  # `check_options` raises the error
    array = np.asarray(option) if of_numpy else convert(backend, name, option, like, first)
    owner = _registry.require(name, array)
    check_dtype(owner, name, array, FLOATS + INTEGERS)
    if shape_of(array) != ():
        msg = f"{name}: got shape {shape_of(array)}; expected a number or a 0-d array"
        raise ValueError(msg)
    if of_numpy:
        return float(array), None
    if owner.is_concrete(array):
        check_options({name: float(owner.to_numpy(array))})
    return OPERAND, array


def traced_z_loss(backend: Backend, option: object, like: Array) -> Any:
    """Check the z-loss of `finish`. An array that is out of range becomes NaN."""
    numbers, operands = split_options(backend, {"z_loss": option}, like, "state")
    z = check_options(numbers)["z_loss"]
    if z is not OPERAND:
        return z
    return in_range(backend.namespace(like), "z_loss", operands[0])


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Check the options that are numbers. OPERAND stands for an array and is not changed."""
    checked = dict(options)
    for name, value in options.items():
        option = OPTIONS[name]
        may_be_none = option.default is None
        if value is OPERAND or (value is None and may_be_none):
            continue
        wanted = "a number or None" if may_be_none else "a number"
        number = checked[name] = check_real(name, value, wanted)
        if not option.holds(number):
            msg = f"{name}: got {number}; expected {option.range_of(name)}"
            raise ValueError(msg)
    return checked


def check_block(backend: Backend, start: Any, size: int | None, classes: object) -> Any:
    """Check that a block of classes is within all classes, if `start` is concrete. Return `start`.

    It is traced if it depends on the index of a device.
    """
    count = check_integer("classes", classes)
    if size is None:
        msg = (
            "logits: got a block with an unknown number of classes; expected one that is known "
            "when the function is traced"
        )
        raise ValueError(msg)
    if backend.owns(start) and shape_of(start) == ():
        check_dtype(backend, "start", start, INTEGERS)
        if not backend.is_concrete(start):
            return start
        start = int(backend.to_numpy(start))
    first = check_integer("start", start)
    if not 0 <= first <= count - size:
        msg = (
            f"start: got {first} for a block of {size} classes; expected 0 <= start <= "
            f"{count - size}, where all blocks have {count} classes"
        )
        raise ValueError(msg)
    return first


def check_logits(
    backend: Backend, logits: Array, axis: object, first: str, *, exact: bool = False
) -> tuple[int, int | None, Precision]:
    """Check the first argument: its class axis, number of classes and precision."""
    dtype = check_dtype(backend, first, logits, FLOATS)
    shape = shape_of(logits)
    axis = _check_axis(axis, shape, first)
    classes = check_classes(shape, axis, first)
    return axis, classes, precision_of(backend, logits, dtype, exact=exact)


def check_target(
    backend: Backend, target: Array, logits: Array, axis: int, classes: int | None, first: str
) -> bool:
    """Check a target's dtype and shape. Return whether both are those of a soft target."""
    dtype = check_dtype(backend, "target", target, *_DTYPES["target"])
    full = shape_of(logits)
    rows = full[:axis] + full[axis + 1 :]
    shape = shape_of(target)
    soft = dtype in FLOATS
    wanted, other = (full, rows) if soft else (rows, full)
    if shapes_agree(shape, wanted):
        return soft
    if shapes_agree(shape, other):
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


def check_weight(
    backend: Backend,
    weight: Array | None,
    logits: Array,
    axis: int,
    classes: int | None,
    first: str,
) -> None:
    if weight is None:
        return
    check_dtype(backend, "weight", weight, FLOATS + INTEGERS)
    if not shapes_agree(shape_of(weight), (classes,)):
        msg = (
            f"weight: got shape {shape_of(weight)}; expected {(classes,)}, one weight for each "
            f"class of {first} of shape {shape_of(logits)} on axis {axis}"
        )
        raise ValueError(msg)


def check_sample_weight(
    backend: Backend, sample_weight: Array | None, logits: Array, axis: int, first: str
) -> None:
    if sample_weight is None:
        return
    check_dtype(backend, "sample_weight", sample_weight, FLOATS + INTEGERS)
    full = shape_of(logits)
    rows = full[:axis] + full[axis + 1 :]
    if not shapes_agree(shape_of(sample_weight), rows):
        msg = (
            f"sample_weight: got shape {shape_of(sample_weight)}; expected {rows}, one weight for "
            f"each row of {first} of shape {full} with classes on axis {axis}"
        )
        raise ValueError(msg)


def check_normalizer(backend: Backend, normalizer: Array | None, reduction: Reduction) -> None:
    if normalizer is None:
        return
    if reduction != "mean":
        msg = f"normalizer: got reduction={reduction!r}; expected reduction='mean'"
        raise ValueError(msg)
    check_dtype(backend, "normalizer", normalizer, FLOATS + INTEGERS)
    if shape_of(normalizer) != ():
        msg = f"normalizer: got shape {shape_of(normalizer)}; expected a number or a 0-d array"
        raise ValueError(msg)


def check_accuracy(backend: Backend, precision: object, logits: Array) -> bool:
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
