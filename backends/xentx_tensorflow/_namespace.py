"""TensorFlow as an Array API namespace, as far as xentx needs one.

The core asks for a namespace of the Array API standard. array-api-compat has one for every other
framework and none for TensorFlow (data-apis/array-api-compat#441 is open), so here are the
standard's functions that the core calls, and no more. The suite of data-apis/array-api-tests
(``nox -s array_api_tests``) proves them. Nothing here is about cross-entropy: once there is an
``array_api_compat.tensorflow``, import that instead and delete this file.

``tf.experimental.numpy`` would be shorter, but its promotion is a switch of the whole process
(``enable_numpy_behavior``), which is the user's to throw. So TensorFlow's own functions stay as
they are wherever they already conform. What is written out below is what they lack: promotion of
mixed dtypes, the standard's keywords, and the corner cases that each have their comment.

Arrays are eager or symbolic tensors, and variables where TensorFlow takes them. A dimension may be
unknown, except where a function is told a shape.
"""

import builtins
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from xentx_tensorflow import _private

Array: TypeAlias = Any  # a tf.Tensor or tf.Variable: TensorFlow has no types
DType: TypeAlias = Any  # a tf.DType
Scalar: TypeAlias = builtins.bool | int | float
Axis: TypeAlias = int | tuple[int, ...] | None
Kind: TypeAlias = str | DType | tuple[str | DType, ...]

__array_api_version__ = "2024.12"

# ---- constants and dtypes

e, inf, nan, pi, newaxis = math.e, math.inf, math.nan, math.pi, None

bool = tf.bool
int8, int16, int32, int64 = tf.int8, tf.int16, tf.int32, tf.int64
uint8, uint16, uint32, uint64 = tf.uint8, tf.uint16, tf.uint32, tf.uint64
float32, float64 = tf.float32, tf.float64
float16, bfloat16 = tf.float16, tf.bfloat16  # not in the standard

_KINDS = {
    "bool": (bool,),
    "signed integer": (int8, int16, int32, int64),
    "unsigned integer": (uint8, uint16, uint32, uint64),
    "real floating": (float32, float64, float16, bfloat16),
    "complex floating": (),
}
_KINDS["integral"] = _KINDS["signed integer"] + _KINDS["unsigned integer"]
_KINDS["numeric"] = _KINDS["integral"] + _KINDS["real floating"]


def isdtype(dtype: DType, kind: Kind) -> builtins.bool:
    """Whether `dtype` is of a kind, given by name, as a dtype, or as a tuple of those."""
    if isinstance(kind, tuple):
        return builtins.any(isdtype(dtype, k) for k in kind)
    return dtype in _KINDS[kind] if isinstance(kind, str) else dtype == kind


def _dtype_of(x: Array | DType) -> DType:
    return getattr(x, "dtype", x)


@functools.cache
def _promote(a: DType, b: DType) -> DType:
    """Return the smallest dtype that holds both, if they are of one kind."""
    if a == b:
        return a
    if {a, b} == {float16, bfloat16}:
        return float32  # NumPy does not support this pair
    both = tf.as_dtype(np.promote_types(a.as_numpy_dtype, b.as_numpy_dtype))
    # NumPy promotes int64 and uint64 to float64, another kind.
    for kind in ("integral", "real floating"):
        if builtins.all(isdtype(dtype, kind) for dtype in (a, b, both)):
            return both
    msg = f"{a.name} and {b.name} have no common dtype; convert one of them with `astype`."
    raise TypeError(msg)


def result_type(*arrays_and_dtypes: Array | DType | Scalar) -> DType:
    """Return the promoted dtype of the arguments. A Python scalar does not change it."""
    scalars = [x for x in arrays_and_dtypes if isinstance(x, builtins.bool | int | float)]
    typed = [x for x in arrays_and_dtypes if not isinstance(x, builtins.bool | int | float)]
    if not typed:
        msg = "`result_type` needs an array or a dtype; got Python scalars only."
        raise TypeError(msg)
    dtype = functools.reduce(_promote, map(_dtype_of, typed))
    for scalar in scalars:
        is_bool, is_int = isinstance(scalar, builtins.bool), isinstance(scalar, int)
        if not isdtype(dtype, "bool" if is_bool else "numeric" if is_int else "real floating"):
            msg = f"{scalar!r} cannot be an element of dtype {dtype.name}."
            raise TypeError(msg)
    return dtype


def can_cast(from_: Array | DType, to: DType, /) -> builtins.bool:
    """Whether promotion would turn `from_` into `to`."""
    try:
        return builtins.bool(result_type(from_, to) == to)
    except TypeError:
        return False


def astype(x: Array, dtype: DType, /, *, copy: builtins.bool = True, device: Any = None) -> Array:
    """Cast `x`. A tensor is immutable, so it is returned unchanged if it has this dtype."""
    del copy
    with tf.device(device):
        return tf.cast(x, dtype)


@dataclass(frozen=True, slots=True)
class _FInfo:
    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True, slots=True)
class _IInfo:
    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: DType | Array, /) -> _FInfo:
    """Machine limits of a floating-point dtype, or of an array's."""
    dtype = _dtype_of(type)
    if dtype == bfloat16:  # unknown to NumPy
        largest = float(dtype.max)
        return _FInfo(16, 2.0**-7, largest, -largest, 2.0**-126, dtype)
    info = np.finfo(dtype.as_numpy_dtype)
    eps, largest, smallest_normal = map(float, (info.eps, info.max, info.smallest_normal))
    return _FInfo(info.bits, eps, largest, -largest, smallest_normal, dtype)


def iinfo(type: DType | Array, /) -> _IInfo:
    """Machine limits of an integer dtype, or of an array's."""
    dtype = _dtype_of(type)
    info = np.iinfo(dtype.as_numpy_dtype)
    return _IInfo(info.bits, int(info.max), int(info.min), dtype)


# ---- creation


def asarray(
    obj: Any, /, *, dtype: DType = None, device: Any = None, copy: builtins.bool | None = None
) -> Array:
    """Make a tensor of an array, a Python scalar or a nested sequence of those."""
    if copy is False and not (tf.is_tensor(obj) and dtype in (None, obj.dtype)):
        msg = f"`asarray` cannot convert {type(obj).__name__} without a copy."
        raise ValueError(msg)
    with tf.device(device):
        if hasattr(obj, "dtype"):
            x = tf.convert_to_tensor(obj)
            return x if dtype is None else tf.cast(x, dtype)
        # Through NumPy, because TensorFlow wraps integers that do not fit, and would use int32.
        host = np.asarray(obj, None if dtype is None else dtype.as_numpy_dtype)
        if dtype is None and host.dtype == np.float64:
            dtype = float32
        return tf.constant(host, dtype)


def arange(
    start: float,
    /,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: DType = None,
    device: Any = None,
) -> Array:
    """Count from `start` up to but not including `stop`."""
    if stop is None:
        start, stop = 0, start
    if dtype is None:
        integers = builtins.all(isinstance(x, int) for x in (start, stop, step))
        dtype = int64 if integers else float32
    # tf.range supports only five dtypes, fewer in XLA, and accumulates rounding errors.
    wide = float64 if isdtype(dtype, "real floating") else int64
    known = not tf.is_tensor(stop)  # else it is `size_of` an axis, counted to from 0
    length = builtins.max(0, int(-((start - stop) // step))) if known else stop
    with tf.device(device):
        return tf.cast(start + step * tf.range(length, dtype=wide), dtype)


def full(
    shape: int | Sequence[int],
    fill_value: Scalar,
    *,
    dtype: DType = None,
    device: Any = None,
) -> Array:
    """Fill a tensor of `shape`."""
    with tf.device(device):
        dims = (shape,) if isinstance(shape, int) else shape
        return tf.fill(dims, asarray(fill_value, dtype=dtype))


def zeros(shape: int | Sequence[int], *, dtype: DType = None, device: Any = None) -> Array:
    """Fill a tensor of `shape` with zeros."""
    return full(shape, 0, dtype=dtype or float32, device=device)


def ones(shape: int | Sequence[int], *, dtype: DType = None, device: Any = None) -> Array:
    """Fill a tensor of `shape` with ones."""
    return full(shape, 1, dtype=dtype or float32, device=device)


def full_like(x: Array, /, fill_value: Scalar, *, dtype: DType = None, device: Any = None) -> Array:
    """Fill a tensor of the shape of `x`, which may be unknown."""
    return full(tf.shape(x), fill_value, dtype=dtype or x.dtype, device=device or x.device)


def zeros_like(x: Array, /, *, dtype: DType = None, device: Any = None) -> Array:
    """Fill a tensor of the shape of `x` with zeros."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Array, /, *, dtype: DType = None, device: Any = None) -> Array:
    """Fill a tensor of the shape of `x` with ones."""
    return full_like(x, 1, dtype=dtype, device=device)


# ---- elementwise


def _promoted(*arrays: Array | Scalar) -> tuple[Array, ...]:
    dtype = result_type(*arrays)
    return tuple(
        tf.cast(x, dtype) if hasattr(x, "dtype") else tf.constant(x, dtype) for x in arrays
    )


def _promoting(function: Callable[[Array, Array], Array]) -> Callable[[Any, Any], Array]:
    """Add the standard's promotion to a TensorFlow function of two arrays."""

    def promoting(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
        return function(*_promoted(x1, x2))

    return promoting


def _of_floats(function: Callable[[Array], Array]) -> Callable[[Any], Array]:
    """Let a test for special values support integers, which have none."""

    def tests(x: Array, /) -> Array:
        return function(x if isdtype(x.dtype, "real floating") else tf.cast(x, float64))

    return tests


exp = tf.math.exp
expm1 = tf.math.expm1
log = tf.math.log
log1p = tf.math.log1p
logical_not = tf.math.logical_not
sqrt = tf.math.sqrt
square = tf.math.square
tanh = tf.math.tanh

add = _promoting(tf.math.add)
divide = _promoting(tf.math.divide)
equal = _promoting(tf.math.equal)
greater = _promoting(tf.math.greater)
greater_equal = _promoting(tf.math.greater_equal)
less = _promoting(tf.math.less)
less_equal = _promoting(tf.math.less_equal)
logical_and = _promoting(tf.math.logical_and)
logical_or = _promoting(tf.math.logical_or)
multiply = _promoting(tf.math.multiply)
not_equal = _promoting(tf.math.not_equal)
subtract = _promoting(tf.math.subtract)

isfinite = _of_floats(tf.math.is_finite)
isinf = _of_floats(tf.math.is_inf)
isnan = _of_floats(tf.math.is_nan)


def abs(x: Array, /) -> Array:
    """Absolute value. TensorFlow has none for unsigned integers."""
    return x if isdtype(x.dtype, "unsigned integer") else tf.math.abs(x)


def negative(x: Array, /) -> Array:
    """Negative value. TensorFlow has none for unsigned integers."""
    return zeros_like(x) - x if isdtype(x.dtype, "unsigned integer") else tf.math.negative(x)


def _or_nan(result: Array, any_nan: Callable[[], Array]) -> Array:
    """Restore NaN in XLA's result: on CPU its maximum of a number and NaN is the number.

    TensorFlow's own kernels propagate NaN. But a function being traced cannot know whether it will
    be compiled by XLA, so only eager calls are spared.
    """
    if tf.executing_eagerly() or not isdtype(result.dtype, "real floating"):
        return result
    return tf.where(any_nan(), tf.constant(nan, result.dtype), result)


def maximum(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Return the larger of two elements, or NaN if one of them is NaN."""
    x1, x2 = _promoted(x1, x2)
    return _or_nan(tf.math.maximum(x1, x2), lambda: isnan(x1) | isnan(x2))


def minimum(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Return the smaller of two elements, or NaN if one of them is NaN."""
    x1, x2 = _promoted(x1, x2)
    return _or_nan(tf.math.minimum(x1, x2), lambda: isnan(x1) | isnan(x2))


def where(condition: Array, x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Select elements of `x1` if `condition` is true, else of `x2`."""
    return tf.where(condition, *_promoted(x1, x2))


def times_infinity(x: Array, infinity: Array) -> Array:
    """``x infinity``, and 0 for 0. For xentx's core, not in the standard."""
    return tf.math.multiply_no_nan(infinity, x)


def size_of(x: Array, axis: int) -> Array:
    """Size of an axis, which may be unknown before a graph runs. For xentx's core."""
    return tf.shape(x)[axis]


# ---- reductions


def sum(
    x: Array,
    /,
    *,
    axis: Axis = None,
    dtype: DType = None,
    keepdims: builtins.bool = False,
) -> Array:
    """Sum along `axis`. By default small integers are summed in the widest dtype of their kind."""
    if dtype is None and isdtype(x.dtype, "integral"):
        dtype = uint64 if isdtype(x.dtype, "unsigned integer") else int64
    return tf.reduce_sum(x if dtype is None else tf.cast(x, dtype), axis, keepdims)


def mean(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Average along `axis`."""
    return tf.reduce_mean(x, axis, keepdims)


def max(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Return the largest element along `axis`, or NaN if there is one."""
    return _or_nan(
        tf.reduce_max(x, axis, keepdims), lambda: any(isnan(x), axis=axis, keepdims=keepdims)
    )


def min(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Return the smallest element along `axis`, or NaN if there is one."""
    return _or_nan(
        tf.reduce_min(x, axis, keepdims), lambda: any(isnan(x), axis=axis, keepdims=keepdims)
    )


def all(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Whether all elements along `axis` are nonzero."""
    return tf.reduce_all(tf.cast(x, bool), axis, keepdims)


def any(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Whether any element along `axis` is nonzero."""
    return tf.reduce_any(tf.cast(x, bool), axis, keepdims)


# ---- manipulation


def reshape(x: Array, /, shape: Sequence[int], *, copy: builtins.bool | None = None) -> Array:
    """Reshape `x`. One entry of the shape may be -1."""
    del copy  # makes no difference for immutable tensors
    return tf.reshape(x, shape)


def expand_dims(x: Array, /, axis: int) -> Array:
    """Insert a dimension of size one at `axis`."""
    rank = x.shape.rank
    if rank is not None and not -rank - 1 <= axis <= rank:
        msg = f"`expand_dims` puts `axis` among those of shape {x.shape}; got {axis}."
        raise IndexError(msg)
    return tf.expand_dims(x, axis)


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    """Remove dimensions of size one."""
    axes = (axis,) if isinstance(axis, int) else axis
    if builtins.any(x.shape[i] not in (1, None) for i in axes):
        msg = f"`squeeze` removes dimensions of size one; got axis {axis} of shape {x.shape}."
        raise ValueError(msg)
    # tf.squeeze without axes removes all of them.
    return tf.squeeze(x, axes) if axes else x


def broadcast_to(x: Array, /, shape: Sequence[int]) -> Array:
    """Repeat `x` along new dimensions and those of size one."""
    return tf.broadcast_to(x, shape)


def permute_dims(x: Array, /, axes: tuple[int, ...]) -> Array:
    """Permute the dimensions."""
    return tf.transpose(x, axes)


def moveaxis(
    x: Array, source: int | tuple[int, ...], destination: int | tuple[int, ...], /
) -> Array:
    """Move dimensions to new places. The others stay in their order."""
    rank = x.shape.rank
    moved, places = (
        [axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)]
        for axes in (source, destination)
    )
    order = [axis for axis in range(rank) if axis not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return tf.transpose(x, order)


def concat(arrays: Sequence[Array], /, *, axis: int | None = 0) -> Array:
    """Join arrays along `axis`, or all their elements if it is None."""
    arrays = _promoted(*arrays)
    if axis is None:
        arrays, axis = tuple(tf.reshape(x, (-1,)) for x in arrays), 0
    return tf.concat(arrays, axis)


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    """Take elements along `axis`. It is optional for 1-d arrays only."""
    axis = 0 if axis is None else axis
    return tf.gather(
        x, tf.where(indices < 0, indices + tf.shape(x, indices.dtype)[axis], indices), axis=axis
    )


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """Take an element along `axis` for each index. The other dimensions must be equal."""
    rank = x.shape.rank
    axis %= rank
    if indices.dtype not in (int32, int64):  # TensorFlow supports no other indices
        indices = tf.cast(indices, int64)
    size = x.shape[axis]
    size = tf.shape(x, indices.dtype)[axis] if size is None else size
    indices = tf.math.floormod(indices, size)  # negative indices count from the end
    if rank == 1:  # as a batch: a sparse gradient would not support forward mode
        return tf.gather(x[None], indices[None], axis=1, batch_dims=1)[0]
    if axis == rank - 1:
        return tf.gather(x, indices, axis=axis, batch_dims=axis)
    return tf.gather_nd(x, _coordinates(indices, axis))


def _coordinates(indices: Array, axis: int) -> Array:
    """Add the indices of the other dimensions to indices along `axis`."""
    rank = indices.shape.rank
    sizes = tf.shape(indices, indices.dtype)

    def places(d: int) -> Array:
        along = [-1 if d == other else 1 for other in range(rank)]
        return tf.broadcast_to(tf.reshape(tf.range(sizes[d]), along), sizes)

    return tf.stack([indices if d == axis else places(d) for d in range(rank)], axis=-1)


def placed_along_axis(
    like: Array, indices: Array, values: Array, *, axis: int, others: Array | None
) -> Array:
    """Put values along an axis of zeros, or of `others`, in the shape of `like`: for xentx's core.

    Not in the standard, nor is the next.
    """
    shape = tf.shape(like, indices.dtype)
    coordinates = _coordinates(indices, axis)
    if others is None:
        return tf.scatter_nd(coordinates, values, shape)
    return tf.tensor_scatter_nd_update(tf.broadcast_to(others, shape), coordinates, values)


def is_split(x: Array, axis: int) -> builtins.bool:
    """Whether an axis may be split over several devices. In graphs this is not known."""
    del axis
    dtensor = _private.dtensor_in_use()
    if dtensor is None:
        return False
    return not tf.executing_eagerly() or builtins.bool(dtensor.is_dtensor(x))


def argmax(x: Array, /, *, axis: int | None = None, keepdims: builtins.bool = False) -> Array:
    """Return the index of the first largest element along `axis`, or of all. NaN is the largest."""
    if axis is None:
        index = argmax(tf.reshape(x, (-1,)), axis=0)
        return tf.reshape(index, (1,) * x.shape.rank) if keepdims else index
    index = tf.argmax(x, axis)
    if x.dtype.is_floating:
        damaged = tf.math.is_nan(x)
        first = tf.argmax(tf.cast(damaged, tf.int32), axis)
        index = tf.where(tf.reduce_any(damaged, axis), first, index)
    return tf.expand_dims(index, axis) if keepdims else index


# ---- inspection


class __array_namespace_info__:  # noqa: N801 - the standard's name of a function
    """The features and defaults of this namespace."""

    def capabilities(self) -> dict[str, Any]:
        """Return the optional features. TensorFlow's indexing supports up to 8 dimensions."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 8}

    def default_device(self) -> None:
        """Return None: TensorFlow places operations itself."""

    def devices(self) -> list[str]:
        """Return the devices."""
        return [device.name for device in tf.config.list_logical_devices()]

    def default_dtypes(self, *, device: Any = None) -> dict[str, DType]:
        """Return the default dtypes."""
        del device
        return {"real floating": float32, "integral": int64, "indexing": int64}

    def dtypes(self, *, device: Any = None, kind: Kind | None = None) -> dict[str, DType]:
        """Return the standard's dtypes of `kind`."""
        del device
        kinds = ("bool", "numeric") if kind is None else kind
        dtypes = (*_KINDS["bool"], *_KINDS["numeric"])
        return {
            dtype.name: dtype
            for dtype in dtypes
            if isdtype(dtype, kinds) and dtype not in (float16, bfloat16)
        }
