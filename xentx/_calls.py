"""Checked calls: their arrays, and a hashable object for everything else.

The CPU kernel reads the arrays as they are. `prepare` converts them for the core.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from xentx._backend import Backend, Engine, Operation
from xentx._core import binary_cross_entropy, cross_entropy, kl_divergence, log_softmax, nll_loss
from xentx._core import reduction as reductions
from xentx._core._spec import LossSpec, Precision, bound
from xentx._types import Array

_MODULES: tuple[Operation, ...] = (
    binary_cross_entropy,
    cross_entropy,
    kl_divergence,
    log_softmax,
    nll_loss,
)
OPERATIONS = {operation.NAME: operation for operation in _MODULES}
_HALF = 2**31


@dataclass(frozen=True, slots=True)
class Kind:
    """A problem without its arrays. It is hashable.

    Parameters
    ----------
    backend
        The backend of the arrays.
    spec
        The specification of the loss.
    engines
        The engines of the backend that support the loss, in order of preference.
    target_dtype_supported
        Whether the engines support the dtype of the target: int32, int64 or floats.
    is_sized
        Whether all sizes are known. In a TensorFlow graph, some may be unknown.
    plans
        The adapter's cache of prepared kernel calls, by the strides of the arrays. It belongs to
        the checked shapes and dtypes: `dataclasses.replace` makes an empty one.
    operation
        The module of `xentx._core` that the spec names.
    """

    backend: Backend
    spec: LossSpec
    engines: tuple[Engine, ...] = ()
    target_dtype_supported: bool = True
    is_sized: bool = True
    plans: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    operation: Operation = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Looked up once, because for small problems the time of the look-up matters.
        object.__setattr__(self, "operation", OPERATIONS[self.spec.operation])

    @property
    def is_reduced(self) -> bool:
        """Whether the value is one number."""
        return self.operation.IS_ROWWISE and self.spec.reduction != "none"

    def taken_by(self, engine: str) -> bool:
        """Whether an engine of this name supports the loss."""
        return any(one.name == engine for one in self.engines)


class Problem(NamedTuple):
    """A checked call, which `xentx._evaluate` evaluates.

    Parameters
    ----------
    kind
        Everything except the arrays.
    arrays
        Logits, target, class weights, sample weights and normalizer, or None for each. The gradient
        of `value_and_grad` is with respect to the first. Options that are arrays follow.
    """

    kind: Kind
    arrays: tuple[Array | None, ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """A problem of the last layer without its arrays. It is hashable.

    Parameters
    ----------
    backend
        The backend of the arrays.
    kind
        The dense problem of a chunk of rows: one loss per row, the classes on axis 1.
    reduction
        The reduction of the rows' losses.
    dtype
        The dtype of the value.
    rows
        Shape of the rows. An entry is None if it is not known yet.
    chunk
        The number of rows of a chunk. None for a suitable number.
    by_classes
        Which of the two methods of `xentx._core.linear` is used.
    narrow
        Whether hidden, head or bias has a narrower dtype than the compute dtype.
    """

    backend: Backend
    kind: Kind
    reduction: str
    dtype: Any
    rows: tuple[int | None, ...]
    chunk: int | None
    by_classes: bool
    narrow: bool

    @property
    def has_reference(self) -> bool:
        """Whether it is a divergence from the logits of another last layer."""
        return self.kind.spec.operation == kl_divergence.NAME

    @property
    def grads_in_forward(self) -> bool:
        """Whether gradients can be computed together with the value, before the cotangent is known.

        False for reduction="none" and for low-precision operands, whose rounded gradients cannot be
        rescaled.
        """
        return self.reduction != "none" and not self.narrow


class LinearProblem(NamedTuple):
    """A checked call of `linear_cross_entropy`, which `xentx._linear` evaluates.

    Parameters
    ----------
    linear
        Everything except the arrays.
    arrays
        Hidden, head, bias, target, class weights, sample weights, normalizer and None. For a
        divergence: hidden, head, bias, the reference's hidden and head, sample weights, normalizer
        and the reference's bias. None for each that is not given. Options that are arrays follow.
    """

    linear: Linear
    arrays: tuple[Array | None, ...]


class Counted(NamedTuple):
    """A problem with `return_normalizer`."""

    problem: Problem | LinearProblem


@dataclass(frozen=True, slots=True)
class Prepared:
    """A problem in the dtypes and shapes of the core.

    Parameters
    ----------
    spec
        The spec of the problem, with the results of checking the class indices.
    bound
        The same with the values of options that are arrays. Then it is not hashable.
    arrays
        The arguments of the operation.
    sample_weight, divisor
        The factors of the rows' losses, and the divisor of a mean.
    """

    spec: LossSpec
    bound: LossSpec
    arrays: tuple[Array | None, ...]
    sample_weight: Array | None = None
    divisor: Array | None = None


def in_places(present: Iterable[Array], given: Iterable[bool]) -> tuple[Array | None, ...]:
    """Put the given arrays in their places, and None in the others."""
    rest = iter(present)
    return tuple(next(rest) if is_given else None for is_given in given)


def replaced(
    arrays: Sequence[Array | None], places: Iterable[int], values: Iterable[Array]
) -> tuple[Array | None, ...]:
    """Replace the arrays in some places."""
    whole = list(arrays)
    for i, value in zip(places, values, strict=True):
        whole[i] = value
    return tuple(whole)


def shape_of(array: Array) -> tuple[int | None, ...]:
    """Return the shape. An entry is None if a tracing compiler does not know it."""
    return tuple(array.shape)


def precision_of(backend: Backend, array: Array, dtype: str, *, exact: bool) -> Precision:
    """Choose the dtypes of the computation for logits of a dtype, on the device of `array`."""
    xp = backend.namespace(array)
    wide = backend.has_float64(array)
    double = dtype == "float64" or (exact and wide)
    compute = xp.float64 if double else xp.float32
    return Precision(
        compute=compute,
        accumulate=xp.float64 if wide else compute,
        # In float64 the rounding errors of the gaps of narrower logits do not matter.
        recover=dtype == "float64" or (dtype == "float32" and not double),
        compensate=not wide,
    )


def spec_of(
    backend: Backend, logits: Array, fields: Mapping[str, Any], groups: int = 0
) -> LossSpec:
    """Rebuild the spec of a checked call from the fields that an operator has.

    The loss is mapped over the first `groups` axes of the logits.
    """
    dtype = backend.dtype_name(logits)
    precision = precision_of(backend, logits, dtype, exact=fields.get("exact", False))
    classes = shape_of(logits)[groups + fields["axis"]]
    return LossSpec(classes=classes, precision=precision, **fields)


def engines_for(
    backend: Backend, spec: LossSpec, target: str | None, like: Array
) -> tuple[Engine, ...]:
    """Choose the engines that support a loss, for a target of this dtype."""
    wide = backend.has_float64(like)
    return tuple(engine for engine in backend.engines if engine.takes(spec, target, wide))


def widest(dtypes: Iterable[str]) -> str:
    """Return the name of the dtype of a loss whose operands have these dtypes."""
    return "float64" if "float64" in dtypes else "float32"


def linear_of(
    backend: Backend,
    arrays: tuple[Any, ...],
    fields: Mapping[str, Any],
    *,
    reduction: str,
    chunk: int | None,
) -> Linear:
    """Make the object of a checked call of a loss of the last layer, without its arrays.

    Parameters
    ----------
    arrays
        The arrays of a `LinearProblem` without the options.
    fields
        The fields of a `LossSpec` that the call specifies.
    reduction, chunk
        As in `Linear`.
    """
    hidden, head, bias, target, weight, _, _, reference_bias = arrays

    def names(*arrays: Array | None) -> list[str]:
        return [backend.dtype_name(array) for array in arrays if array is not None]

    dtypes = names(hidden, head, bias)
    is_divergence = fields["operation"] == kl_divergence.NAME
    others = names(target, weight, reference_bias) if is_divergence else []
    dtype = widest([*dtypes, *others])
    precision = precision_of(backend, hidden, dtype, exact=fields.get("exact", False))
    # A chunk of rows, with one loss per row.
    chunk_fields = {**fields, "axis": 1, "reduction": "none"}
    spec = LossSpec(classes=shape_of(head)[0], precision=precision, **chunk_fields)
    xp = backend.namespace(hidden)
    compute = backend.dtype_name(xp.zeros((), dtype=precision.compute))
    return Linear(
        backend=backend,
        kind=Kind(backend, spec, engines_for(backend, spec, names(target)[0], hidden)),
        reduction=reduction,
        dtype=xp.zeros((), dtype=getattr(xp, dtype)).dtype,
        rows=shape_of(hidden)[:-1],
        chunk=chunk,
        by_classes=not is_divergence and any(name != compute for name in dtypes[:2]),
        narrow=any(name != compute for name in dtypes),
    )


def impossible(values: np.ndarray[Any, Any], spec: LossSpec) -> np.ndarray[Any, Any]:
    """Mark the class indices that are out of range and not ignored."""
    # As unsigned integers, negative indices are larger than all classes.
    wrong: Any = values.view(f"u{values.itemsize}") >= spec.classes
    return wrong if spec.ignore_index is None else wrong & (values != spec.ignore_index)


def indices(
    backend: Backend,
    target: Array,
    like: Array,
    spec: LossSpec,
    *,
    look: bool = True,
) -> tuple[Array, bool, int | None]:
    """Check class indices if they are concrete and `look` is true. Cast them to the core's dtype.

    Returns the indices, whether they were checked, and the index of the rows to ignore. It is None
    if the check has found no such row.
    """
    seen = look and backend.is_concrete(target)
    ignored = ignore_index = spec.ignore_index
    if seen:
        values = backend.to_numpy(target)
        wrong = impossible(values, spec)
        if ignored is not None and not (values == ignored).any():
            ignored = None
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            msg = (
                f"target: got {values[at]} at position {at[0] if len(at) == 1 else at}; expected "
                f"0 <= target < {spec.classes}"
                + ("" if ignore_index is None else f", or ignore_index={ignore_index}")
            )
            raise IndexError(msg)
    xp = backend.namespace(like)
    dtype = xp.int64 if backend.has_float64(like) else xp.int32
    if ignored is not None and seen and not -_HALF <= ignored < _HALF and dtype is xp.int32:
        msg = (
            f"ignore_index: got {ignored}, which is in target; expected {-_HALF} <= ignore_index < "
            f"{_HALF} where the framework has no integers of 64 bits (hint: jax.enable_x64)"
        )
        raise ValueError(msg)
    return xp.astype(target, dtype, copy=False), seen, ignored


def prepare(problem: Problem, *, look: bool = True) -> Prepared:
    """Convert a problem for the core, and check class indices if they are concrete.

    With ``look=False`` they are not checked, because the host would have to wait for a device.
    """
    kind = problem.kind
    backend, spec = kind.backend, kind.spec
    logits, target, weight, sample_weight, normalizer, *options = problem.arrays
    if target is None:
        return Prepared(spec, spec, (logits,))
    xp = backend.namespace(logits)
    if not spec.soft:
        target, seen, ignored = indices(backend, target, logits, spec, look=look)
        if len(shape_of(target)) == len(shape_of(logits)):  # several class indices for each row
            target = xp.moveaxis(target, -1, spec.axis)
        else:
            target = xp.expand_dims(target, axis=spec.axis)
        device = backend.device(logits)
        spec = replace(spec, checked=seen, ignore_index=ignored, device=device)
    compute = spec.precision.compute
    if weight is not None:
        shape = tuple(-1 if d == spec.axis else 1 for d in range(len(shape_of(logits))))
        weight = xp.reshape(xp.astype(weight, compute, copy=False), shape)
    if sample_weight is not None:
        sample_weight = xp.astype(sample_weight, compute, copy=False)
        sample_weight = xp.expand_dims(sample_weight, axis=spec.axis)
    options = [xp.astype(option, compute, copy=False) for option in options]
    whole = bound(xp, spec, logits, options)
    divisor = None
    if normalizer is not None:
        divisor = xp.astype(normalizer, spec.precision.accumulate, copy=False)
    elif spec.reduction in ("mean", "weighted_mean"):
        with backend.evaluating():
            divisor = reductions.divisor(xp, whole, spec.reduction, target, weight, sample_weight)
    return Prepared(spec, whole, (logits, target, weight, *options), sample_weight, divisor)
