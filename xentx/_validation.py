"""Validate arguments and return a checked call. `_checks` has the single checks.

A checked call is the same for every framework: the arrays as they were given, and a hashable
`LossSpec` of everything else. So the error messages are the same too. They name the argument, its
value and the expected value.

Everything except the values of class indices depends only on dtypes, shapes and options. The result
of these checks is cached, because for ten classes they take longer than the loss.
"""

import contextlib
import re
from collections.abc import Hashable
from typing import Any

from xentx._backend import Backend, Operation
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
from xentx._checks import (
    FLOATS,
    INTEGERS,
    as_array,
    check_accuracy,
    check_classes,
    check_dtype,
    check_integer,
    check_logits,
    check_normalizer,
    check_options,
    check_reduction,
    check_sample_weight,
    check_target,
    check_weight,
    convert,
    shapes_agree,
    split_options,
)
from xentx._core._spec import OPERAND, OPTIONS, LossSpec, in_range, is_given
from xentx._types import Array

# The results of the checks.
_KINDS: dict[Hashable, Kind] = {}
_MOST_KINDS = 4096

# An amount of memory, as `chunk` may be given.
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MEMORY = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")


def _form(array: Array) -> Hashable:
    return array.dtype, tuple(array.shape)


def _remembered(backend: Backend, key: tuple[object, ...]) -> Kind | None:
    """Return the cached kind of `key`, or None.

    Symbolic shapes are not cached. An option that is not hashable is invalid, and the checks raise
    its error.
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
    """Validate the arguments of a function that maps logits to an array of their shape."""
    logits = as_array(backend, "logits", logits, logits)
    wide = backend.has_float64(logits)
    key = (backend, operation, type(logits), _form(logits), wide, axis, type(axis), precision)
    kind = _remembered(backend, key)
    if kind is None:
        exact = check_accuracy(backend, precision, logits)
        place, classes, dtypes = check_logits(backend, logits, axis, "logits", exact=exact)
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
    """Validate the arguments of a loss with one value per row and a reduction over the rows."""
    logits = as_array(backend, first, logits, logits)
    target = convert(backend, "target", target, logits, first)
    if weight is not None:
        weight = convert(backend, "weight", weight, logits, first)
    if sample_weight is not None:
        sample_weight = convert(backend, "sample_weight", sample_weight, logits, first)
    if normalizer is not None:
        normalizer = convert(backend, "normalizer", normalizer, logits, first)
    arrays = (logits, target, weight, sample_weight, normalizer)
    operands: tuple[Array, ...] = ()
    options = (label_smoothing, z_loss, logit_softcap, temperature)
    types: tuple[type, ...] = ()
    if logit_softcap is not None or not (
        type(label_smoothing) is type(z_loss) is type(temperature) is float
    ):
        named = dict(zip(OPTIONS, options, strict=True))
        numbers, operands = split_options(backend, named, logits, first)
        options = tuple(numbers.values())
        types = tuple(map(type, options))
    key = (
        backend,
        operation,
        backend.has_float64(logits),
        type(logits),  # libraries that share a backend have different dtypes
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
        # True equals 1 as a key, and is invalid as an option.
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
    """Check all arguments of a loss, except the values of its class indices."""
    logits, target, weight, sample_weight, normalizer = arrays
    exact = check_accuracy(backend, precision, logits)
    place, classes, dtypes = check_logits(backend, logits, axis, first, exact=exact)
    soft = check_target(backend, target, logits, place, classes, first)
    ignore: Any = ignore_index
    if ignore is not None and not isinstance(ignore, getattr(backend, "symbols", ())):
        ignore = check_integer("ignore_index", ignore)
        if not -(2**63) <= ignore < 2**63:
            msg = f"ignore_index: got {ignore}; expected -2**63 <= ignore_index < 2**63"
            raise ValueError(msg)
    if soft and ignore not in (None, -100):  # the default may stay
        msg = (
            f"ignore_index: got {ignore} with a soft target; expected class indices for target, "
            "or a sample_weight of 0 for the rows to ignore"
        )
        raise TypeError(msg)
    numbers = check_options(options)
    chosen = check_reduction(reduction)
    check_weight(backend, weight, logits, place, classes, first)
    check_sample_weight(backend, sample_weight, logits, place, first)
    check_normalizer(backend, normalizer, chosen)
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
    supported = dtype in ("int32", "int64", *FLOATS)
    sized = (logits, target, weight, sample_weight)
    is_sized = all(array is None or None not in shape_of(array) for array in sized)
    return Kind(backend, spec, engines_for(backend, spec, dtype, logits), supported, is_sized)


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
    """Validate the arguments of a loss of each logit. Each logit is a row with one class.

    The target becomes the shares of the negative and the positive class on a last axis, with
    smoothing and `pos_weight` applied.
    """
    logits = as_array(backend, "logits", logits, logits)
    dtype = check_dtype(backend, "logits", logits, FLOATS)
    shape = shape_of(logits)
    target = convert(backend, "target", target, logits, "logits")
    check_dtype(backend, "target", target, FLOATS + INTEGERS)
    if not shapes_agree(shape_of(target), shape):
        msg = f"target: got shape {shape_of(target)}; expected {shape}, the shape of logits"
        raise ValueError(msg)
    exact = check_accuracy(backend, precision, logits)
    numbers, operands = split_options(
        backend, {"label_smoothing": label_smoothing}, logits, "logits"
    )
    smoothing = check_options(numbers)["label_smoothing"]
    chosen = check_reduction(reduction)
    dtypes = precision_of(backend, logits, dtype, exact=exact)
    xp, compute = backend.namespace(logits), dtypes.compute
    # Both shares are computed from the target: 1 - positive would round a small share.
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
        array = convert(backend, name, value, logits, "logits")
        check_dtype(backend, name, array, FLOATS + INTEGERS)
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
    """Whether an array of a shape can be broadcast to another shape. Unknown sizes fit."""
    if len(shape) > len(to):
        return False
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return all(m == n or m in (1, None) or n is None for m, n in pairs)


class StandIn:
    """The attributes of logits that the checks need, for logits that are not computed."""

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
    """Validate the arguments of `cross_entropy` of the logits ``hidden @ head.T + bias``."""
    hidden = as_array(backend, "hidden", hidden, hidden)
    head = convert(backend, "head", head, hidden, "hidden")
    target = convert(backend, "target", target, hidden, "hidden")
    bias, *others = (
        None if value is None else convert(backend, name, value, hidden, "hidden")
        for name, value in (
            ("bias", bias),
            ("weight", weight),
            ("sample_weight", sample_weight),
            ("normalizer", normalizer),
        )
    )
    options = dict(zip(OPTIONS, (label_smoothing, z_loss, logit_softcap, temperature), strict=True))
    numbers, operands = split_options(backend, options, hidden, "hidden")
    names = {"hidden": hidden, "head": head} | ({} if bias is None else {"bias": bias})
    dtypes = [check_dtype(backend, name, array, FLOATS) for name, array in names.items()]
    shape, classes = check_shapes(hidden, head, bias)
    xp = backend.namespace(hidden)
    like = xp.zeros((), dtype=getattr(xp, widest(dtypes))).dtype
    logits = StandIn(xp, hidden, (*shape, classes), like)
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
    arrays = (hidden, head, bias, target, *others, None)
    static = linear_of(
        backend,
        arrays,
        {
            name: getattr(spec, name)
            for name in ("operation", "soft", "ignore_index", "exact", *OPTIONS)
        },
        reduction=spec.reduction,
        chunk=check_chunk(xp, chunk, spec),
    )
    if not kind.is_sized and hasattr(backend, "of_sizes"):
        weight, sample_weight, normalizer = others
        rows = range(len(shape))
        target = backend.of_sizes("target", target, hidden, rows)
        sample_weight = backend.of_sizes("sample_weight", sample_weight, hidden, rows)
        arrays = (hidden, head, bias, target, weight, sample_weight, normalizer, None)
    return LinearProblem(static, (*arrays, *operands))


def check_shapes(
    hidden: Array, head: Array, bias: Array | None, prefix: str = ""
) -> tuple[tuple[int | None, ...], int | None]:
    """Check the shapes of the operands. Return the shape of the rows and the number of classes.

    Error messages name them with a prefix.
    """
    shape, head_shape = shape_of(hidden), shape_of(head)
    if not shape:
        msg = f"{prefix}hidden: got a 0-dimensional array; expected at least an axis of features"
        raise ValueError(msg)
    if len(head_shape) != 2 or not shapes_agree(head_shape[1:], shape[-1:]):  # noqa: PLR2004
        msg = (
            f"{prefix}head: got shape {head_shape}; expected (classes, {shape[-1]}) for "
            f"{prefix}hidden of shape {shape}"
        )
        raise ValueError(msg)
    for name, given, axis, what in (
        ("hidden", shape, len(shape) - 1, "features"),
        ("head", head_shape, 0, "classes"),
        ("head", head_shape, 1, "features"),
    ):
        if given[axis] is None:
            msg = (
                f"{prefix}{name}: got shape {given} with an unknown number of {what} on axis "
                f"{axis}; expected one that is known when the function is traced"
            )
            raise ValueError(msg)
    classes = check_classes(head_shape, 0, f"{prefix}head")
    if bias is not None and not shapes_agree(shape_of(bias), (classes,)):
        msg = (
            f"{prefix}bias: got shape {shape_of(bias)}; expected {(classes,)} for {prefix}head of "
            f"shape {head_shape}"
        )
        raise ValueError(msg)
    return shape[:-1], classes


def check_chunk(xp: Any, chunk: object, spec: LossSpec) -> int | None:
    """Return a number of rows; None for "auto"."""
    if isinstance(chunk, str):
        if chunk == "auto":
            return None
        found = _MEMORY.fullmatch(chunk)
        if not found:
            msg = (
                f"chunk: got {chunk!r}; expected a number of rows, 'auto', or an amount of memory "
                "such as '256MB'"
            )
            raise ValueError(msg)
        amount, unit = found.groups()
        row = spec.classes * xp.finfo(spec.precision.compute).bits // 8
        return max(1, int(float(amount) * _UNITS[unit]) // row)
    size = check_integer("chunk", chunk)
    if size < 1:
        msg = f"chunk: got {size}; expected at least 1 row"
        raise ValueError(msg)
    return size


def cotangent(backend: Backend, value: object, like: Array, shape: tuple[int | None, ...]) -> Array:
    """Check the cotangent of a value of some shape, beside an array of the call."""
    array = convert(backend, "cotangent", value, like, "the value")
    check_dtype(backend, "cotangent", array, FLOATS + INTEGERS)
    if not shapes_agree(shape_of(array), shape):
        msg = f"cotangent: got shape {shape_of(array)}; expected {shape}, the shape of the value"
        raise ValueError(msg)
    return array
