"""Losses of classes that are sharded over devices: tensor parallel training inside `jax.shard_map`.

The logits are sharded along their last axis, in equal parts over one or several axes of the mesh.
Class probabilities and class weights are sharded in the same way. The rows are replicated over
these axes, and so are class indices, sample weights and the value.

A loss needs two collectives: ``pmax`` of one number for each row, and ``psum`` of three numbers, or
of four with class weights, label smoothing or class probabilities. Their size does not depend on
the number of classes. The backward pass with respect to the logits needs no collective. The
gradient of `hidden` is a sum over the devices, which needs one.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax

from xentx import RowStats, _registry, _shards, _validation
from xentx._calls import Problem
from xentx._checks import LossOptions, Reduction
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import linear as core
from xentx._core import partials as monoid
from xentx._core._spec import LossSpec
from xentx._core.partials import Partials
from xentx._shards import Arrays, Shard
from xentx_jax import _linear, _namespace
from xentx_jax._arrays import BACKEND

__all__ = ["cross_entropy", "linear_cross_entropy", "per_row"]

Array = jax.Array
Axis = str | tuple[str, ...]


def _joined(
    shard: Shard, axis: Axis, arrays: Arrays, extra: Sequence[Array] = ()
) -> tuple[Partials[Array], tuple[Array, ...]]:
    """Return the state of all classes, and the sums of further numbers of each row."""
    own = _shards.state(shard, arrays)
    top = lax.pmax(lax.stop_gradient(own.top), axis)
    terms = _shards.summands(shard, own, top)
    sums = lax.psum((*terms, *extra), axis)
    return _shards.joined(shard, arrays, own, top, sums[: len(terms)]), sums[len(terms) :]


def _here(static: Shard, axis: Axis) -> Shard:
    """Return the shard with the first class of this device. `static` has none, to be hashable."""
    return replace(static, start=lax.axis_index(axis) * static.size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _losses(
    static: Shard, axis: Axis, reduction: str, *arrays: Array | None
) -> tuple[Array, Array | None]:
    """Return the loss of each row, and its amount in the divisor of a mean if that is a sum."""
    losses, amounts, _ = _solved(static, axis, reduction, arrays)
    return losses, amounts


def _solved(
    static: Shard, axis: Axis, reduction: str, arrays: Arrays
) -> tuple[Array, Array | None, Partials[Array]]:
    shard = _here(static, axis)
    has_amounts = shard.has_amounts(reduction)
    is_mass = shard.amounts_are_mass(reduction)
    extra = [_shards.amounts(shard, arrays, reduction)] if has_amounts and not is_mass else []
    state, sums = _joined(shard, axis, arrays, extra)
    amounts = None
    if has_amounts:
        amounts = state.mass if is_mass else sums[0]
    return _shards.losses(shard, arrays, state), amounts, state


@functools.partial(_losses.defjvp, symbolic_zeros=True)
def _losses_jvp(
    static: Shard, axis: Axis, reduction: str, arrays: Arrays, tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Compute the tangent with respect to the logits from the state, and the others by JAX."""
    shard = _here(static, axis)
    losses, amounts, state = _solved(static, axis, reduction, arrays)
    by_logits, *others = _linear.known(tangents)
    by_losses = jnp.zeros_like(losses)
    by_amounts = None if amounts is None else jnp.zeros_like(amounts)
    if by_logits is not None:
        spec = _shards.prepared(shard, arrays).bound
        logits, target, weight, *_ = arrays
        slope = monoid.gradient(_namespace, spec, state, logits, target, weight, shard.start)
        tangent = by_logits.astype(slope.dtype)
        share = jnp.sum(slope * tangent, axis=1, dtype=losses.dtype)
        by_losses = by_losses + lax.psum(share, axis)
    if any(tangent is not None for tangent in others):

        def plain(*given: Array | None) -> Any:
            return _solved(static, axis, reduction, given)[:2]

        _, (more, by_amounts) = _linear.plain_jvp(plain, arrays, (None, *others))
        by_losses = by_losses + more
    return (losses, amounts), (by_losses, by_amounts)


def _first_largest(shard: Shard, axis: Axis, arrays: Sequence[Array]) -> list[Array]:
    """Return the class of the first largest number of each row, or of its first NaN."""
    far = 2 * shard.spec.classes
    places, keys = [], []
    for array in arrays:
        place = jnp.argmax(array, axis=1)
        value = jnp.take_along_axis(array, place[:, None], axis=1)[:, 0]
        places.append((place + shard.start, jnp.isnan(value)))
        keys.append(jnp.where(jnp.isnan(value), jnp.inf, value))
    tops = lax.pmax(keys, axis)
    # The first device with the largest number. Devices with NaN precede the others.
    found = [
        jnp.where(is_nan, place - far, jnp.where(key == top, place, far))
        for (place, is_nan), key, top in zip(places, keys, tops, strict=True)
    ]
    return [jnp.where(first < 0, first + far, first) for first in lax.pmin(found, axis)]


# ---- The last layer.


class _ShardTiles(_linear.JAXTiles):
    """Tiles in loops, for arrays that vary over the axes of the mesh that hidden or head vary over.

    A loop must return arrays that vary over the same axes as its initial values. `zero` is a zero
    that varies over these axes.
    """

    def __init__(self, zero: Array) -> None:
        super().__init__(_namespace)
        self.zero = zero

    def zeros(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        return super().zeros(shape, dtype, like) + self.zero.astype(dtype)


@dataclass(frozen=True)
class _Last:
    """Everything about a loss of the last layer except the arrays. It is hashable.

    Parameters
    ----------
    shard, axis
        The shard without its first class, and the axis of the mesh.
    spec
        The loss with the dtype of the matrix products. That of the shard has the dtype of states.
    chunk
        The requested number of rows of a tile, or None.
    """

    shard: Shard
    axis: Axis
    spec: LossSpec
    chunk: int | None

    def tiling(self, rows: int) -> core.Tiling:
        return core.tiling(rows, self.shard.size, self.chunk, by_classes=True)

    def engine(self, options: Sequence[Array]) -> core.Engine:
        """Return the functions that compute tiles."""
        return _shards.engine(_here(self.shard, self.axis), options)


def _factors(last: _Last, arrays: Arrays) -> tuple[_ShardTiles, core.Arrays]:
    """Return the tiles, and hidden, head, bias, target and weight in the layout of the core."""
    hidden, head, bias, target, weight, *_ = arrays
    zero = jnp.zeros_like(hidden, shape=()) + jnp.zeros_like(head, shape=())
    target = target if last.spec.soft else target[:, 0]
    return _ShardTiles(zero), (hidden, head, bias, target, None if weight is None else weight[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _last_losses(last: _Last, *arrays: Array | None) -> Array:
    """Return the loss of each row from hidden, head, bias, target, weight and options."""
    return _last_state(last, arrays)[0]


def _last_state(last: _Last, arrays: Arrays) -> tuple[Array, Partials[Array]]:
    tiles, factors = _factors(last, arrays)
    options, tiling = arrays[5:], last.tiling(arrays[0].shape[0])
    own = core.states(tiles, last.spec, tiling, factors, last.engine(options))
    own = own._replace(kept=_kept(last, arrays[3], own.kept))
    shard = _here(last.shard, last.axis)
    given = (arrays[0], *arrays[3:])
    top = lax.pmax(lax.stop_gradient(own.top), last.axis)
    sums = lax.psum(tuple(_shards.summands(shard, own, top)), last.axis)
    state = _shards.joined(shard, given, own, top, sums)
    return _shards.losses(shard, given, state), state


def _kept(last: _Last, target: Array, like: Array) -> Array:
    """Return 1 for the rows that are not ignored, else 0. It is the same on all devices."""
    if last.spec.ignore_index is None:
        return like
    return (target[:, 0] != last.spec.ignore_index).astype(like.dtype)


def _last_forward(last: _Last, *given: Any) -> tuple[Array, Any]:
    arrays = tuple(None if a is None else a.value for a in given)
    names = ("target", "weight", *last.spec.operands)
    for name, a in zip(names, given[3:], strict=True):
        if a is not None and a.perturbed and jnp.issubdtype(a.value.dtype, jnp.floating):
            msg = (
                f"{name}: got an array that is differentiated; expected a constant (hint: "
                "xentx_jax.parallel.cross_entropy of the logits)"
            )
            raise NotImplementedError(msg)
    losses, state = _last_state(last, arrays)
    return losses, (arrays, state)


def _last_backward(last: _Last, residuals: Any, cotangent: Any) -> tuple[Any, ...]:
    arrays, state = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return (None,) * len(arrays)
    tiles, factors = _factors(last, arrays)
    found = core.gradients_of(
        tiles,
        last.spec,
        last.tiling(arrays[0].shape[0]),
        factors,
        state,
        cotangent,
        last.engine(arrays[5:]),
        (True, True, arrays[2] is not None),
    )
    gradients = (
        None if a is None or g is None else g.astype(a.dtype)
        for a, g in zip(arrays[:3], found, strict=True)
    )
    return *gradients, *(None for _ in arrays[3:])


_last_losses.defvjp(_last_forward, _last_backward, symbolic_zeros=True)
# Without jit, JAX has no symbolic zeros inside shard_map.
_traced_last_losses = jax.jit(_last_losses, static_argnums=0)


def _differing(array: Array, others: Sequence[Array]) -> Array:
    """Return an array that varies over all axes of the mesh that `others` vary over.

    Then autodiff sums its gradient over these axes. A compiler removes the selection.
    """
    for other in others:
        array = jnp.where(jnp.zeros_like(other, shape=(), dtype=bool), 0, array)
    return array


# ---- The functions.


def _laid_out(
    logits: Array, target: Array, axis: Axis, **options: Any
) -> tuple[Shard, Arrays, _shards.Rows]:
    """Validate a call with logits, and lay it out."""
    if not BACKEND.owns(logits):
        msg = f"logits: got {_registry.describe(logits)}; expected a jax array"
        raise TypeError(msg)
    problem = _validation.rowwise(BACKEND, _cross_entropy, logits, target, axis=-1, **options)
    shape, size = logits.shape[:-1], logits.shape[-1]
    return _shards.lay_out(
        problem,
        jnp.reshape(logits, (math.prod(shape), size)),
        shape,
        logits.dtype,
        size=size,
        classes=size * lax.axis_size(axis),
        start=None,
    )


@overload
def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    return_normalizer: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Array: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    return_normalizer: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Array, Array]: ...
def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    return_normalizer: bool = False,
) -> Any:
    """`xentx.cross_entropy` of logits whose classes are sharded over an axis of the mesh.

    Call it in a function that `jax.shard_map` maps.

    Parameters
    ----------
    logits : jax.Array
        The logits of this device's classes, on the last axis. All devices have the same number.
    target : jax.Array
        Class indices, counted from the first class of all devices, the same on every device; or
        this device's part of class probabilities.
    axis_name : str or tuple of str
        The axis of the mesh, or the axes, over which the classes are sharded.
    weight : jax.Array, optional
        This device's part of the class weights.
    sample_weight : jax.Array, optional
        As in `xentx.cross_entropy`, the same on every device of these axes.
    ignore_index : int or None, default: -100
        As in `xentx.cross_entropy`.
    label_smoothing, z_loss : float or jax.Array, default: 0.0
        As in `xentx.cross_entropy`.
    logit_softcap : float or jax.Array, optional
        As in `xentx.cross_entropy`.
    temperature : float or jax.Array, default: 1.0
        As in `xentx.cross_entropy`.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `xentx.cross_entropy`. It is over the rows of the device. If rows are sharded over
        another axis, ``psum`` a "sum" and its normalizer over this axis, and divide.
    normalizer : float or jax.Array, optional
        As in `xentx.cross_entropy`.
    return_normalizer : bool, default: False
        As in `xentx.cross_entropy`.

    Returns
    -------
    jax.Array
        What `xentx.cross_entropy` returns for all classes together, the same on every device of
        these axes.
    jax.Array
        With `return_normalizer`, the divisor.

    Raises
    ------
    TypeError, ValueError
        As `xentx.cross_entropy`. A class index that is out of range makes its row NaN.

    Notes
    -----
    Derivatives of any order and in both modes are supported. Only derivatives with respect to class
    weights, class probabilities and options need more collectives. Without JAX's 64-bit mode the
    states are float32, and the loss has the error of float32 sums.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax.sharding import AxisType, PartitionSpec as P
    >>> from xentx_jax import parallel
    >>> mesh = jax.make_mesh((1,), ("vocabulary",), axis_types=(AxisType.Auto,))
    >>> logits, target = jnp.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]]), jnp.array([1, 2])
    >>> loss = jax.shard_map(
    ...     lambda x, t: parallel.cross_entropy(x, t, axis_name="vocabulary"),
    ...     mesh=mesh,
    ...     in_specs=(P(None, "vocabulary"), P()),
    ...     out_specs=P(),
    ... )
    >>> print(f"{loss(logits, target):.6f}")
    0.390574
    """
    shard, arrays, rows = _laid_out(
        logits,
        target,
        axis_name,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
    )
    wanted = rows.divided_by(return_normalizer=return_normalizer)
    losses, amounts = _losses(shard, axis_name, wanted, *arrays)
    return _shards.reduce(shard, arrays, rows, losses, amounts, return_normalizer=return_normalizer)


@overload
def linear_cross_entropy(
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    bias: Array | None = None,
    chunk: int | str = "auto",
    return_normalizer: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Array: ...
@overload
def linear_cross_entropy(
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    bias: Array | None = None,
    chunk: int | str = "auto",
    return_normalizer: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Array, Array]: ...
def linear_cross_entropy(
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    bias: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    return_normalizer: bool = False,
    chunk: int | str = "auto",
) -> Any:
    """`xentx.linear_cross_entropy` of a head whose classes are sharded over an axis of the mesh.

    A device computes its logits tile by tile, and never stores all of them.

    Parameters
    ----------
    hidden : jax.Array
        The last layer's input, features on the last axis, the same on every device of these axes.
    head : jax.Array
        This device's part of the last layer's weights, in shape ``(classes, features)``.
    target : jax.Array
        As in `cross_entropy`.
    axis_name : str or tuple of str
        As in `cross_entropy`.
    bias : jax.Array, optional
        This device's part of the last layer's bias.
    weight, sample_weight : jax.Array, optional
        As in `cross_entropy`.
    ignore_index : int or None, default: -100
        As in `cross_entropy`.
    label_smoothing, z_loss : float or jax.Array, default: 0.0
        As in `cross_entropy`.
    logit_softcap : float or jax.Array, optional
        As in `cross_entropy`.
    temperature : float or jax.Array, default: 1.0
        As in `cross_entropy`.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `cross_entropy`.
    normalizer : float or jax.Array, optional
        As in `cross_entropy`.
    return_normalizer : bool, default: False
        As in `cross_entropy`.
    chunk : int or str, default: "auto"
        The number of rows of a tile, or the memory of their logits, such as "256MB".

    Returns
    -------
    jax.Array
        What `xentx.linear_cross_entropy` returns for the whole head.
    jax.Array
        With `return_normalizer`, the divisor.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.
    NotImplementedError
        If it is differentiated with respect to class probabilities, class weights or options.

    Notes
    -----
    Only reverse mode is supported, with respect to hidden, head, bias and sample weights. The
    backward pass computes the tiles of logits again.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax.sharding import AxisType, PartitionSpec as P
    >>> from xentx_jax import parallel
    >>> mesh = jax.make_mesh((1,), ("vocabulary",), axis_types=(AxisType.Auto,))
    >>> hidden = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    >>> head = jnp.array([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> loss = jax.shard_map(
    ...     lambda *a: parallel.linear_cross_entropy(*a, axis_name="vocabulary"),
    ...     mesh=mesh,
    ...     in_specs=(P(), P("vocabulary"), P()),
    ...     out_specs=P(),
    ... )
    >>> print(f"{loss(hidden, head, jnp.array([0, 2])):.6f}")
    0.565440
    """
    if not BACKEND.owns(hidden):
        msg = f"hidden: got {_registry.describe(hidden)}; expected a jax array"
        raise TypeError(msg)
    linear, given = _validation.linear(
        BACKEND,
        _cross_entropy,
        hidden,
        head,
        target,
        bias=bias,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        chunk=chunk,
    )
    _, factor, bias, *rowwise, _ = given[:8]
    assert factor is not None  # noqa: S101 -- for the type checker
    shape, size = hidden.shape[:-1], head.shape[0]
    kind = replace(linear.kind, spec=replace(linear.kind.spec, reduction=linear.reduction))
    shard, arrays, rows = _shards.lay_out(
        Problem(kind, (hidden, *rowwise, *given[8:])),
        jnp.reshape(hidden, (math.prod(shape), hidden.shape[-1])),
        shape,
        linear.dtype,
        size=size,
        classes=size * lax.axis_size(axis_name),
        start=None,
    )
    dtypes = linear.kind.spec.precision
    last = _Last(shard, axis_name, replace(shard.spec, precision=dtypes), linear.chunk)
    flat, *rest = arrays
    # Converted first, so that the gradient is summed over the devices in the compute dtype.
    flat = jnp.asarray(flat, dtypes.compute)
    known = (flat, factor, bias)
    factors = [a if a is None else _differing(a, (flat, factor)) for a in known]
    losses = _traced_last_losses(last, *factors, *rest)
    amounts, wanted = None, rows.divided_by(return_normalizer=return_normalizer)
    if shard.has_amounts(wanted):
        amounts = lax.psum(_shards.amounts(_here(shard, axis_name), arrays, wanted), axis_name)
    return _shards.reduce(shard, arrays, rows, losses, amounts, return_normalizer=return_normalizer)


def per_row(
    logits: Array,
    target: Array,
    /,
    *,
    axis_name: Axis,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
) -> RowStats[Array]:
    """`xentx.per_row` of logits whose classes are sharded over an axis of the mesh.

    Parameters
    ----------
    logits : jax.Array
        As in `cross_entropy`.
    target : jax.Array
        As in `cross_entropy`.
    axis_name : str or tuple of str
        As in `cross_entropy`.
    weight : jax.Array, optional
        As in `cross_entropy`.
    ignore_index : int or None, default: -100
        As in `cross_entropy`.
    label_smoothing, z_loss : float or jax.Array, default: 0.0
        As in `cross_entropy`.
    logit_softcap : float or jax.Array, optional
        As in `cross_entropy`.
    temperature : float or jax.Array, default: 1.0
        As in `cross_entropy`.

    Returns
    -------
    RowStats
        What `xentx.per_row` returns for all classes together, the same on every device of these
        axes.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    Another ``pmax`` and a ``pmin`` find the first class of the largest logit.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax.sharding import AxisType, PartitionSpec as P
    >>> from xentx_jax import parallel
    >>> mesh = jax.make_mesh((1,), ("vocabulary",), axis_types=(AxisType.Auto,))
    >>> stats = jax.shard_map(
    ...     lambda x, t: parallel.per_row(x, t, axis_name="vocabulary"),
    ...     mesh=mesh,
    ...     in_specs=(P(None, "vocabulary"), P()),
    ...     out_specs=P(),
    ... )
    >>> stats(jnp.array([[1.0, 2.0, 0.5]]), jnp.array([1])).prediction.tolist()
    [1]
    """
    shard, arrays, rows = _laid_out(
        logits,
        target,
        axis_name,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
    )
    loss, _ = _losses(shard, axis_name, "none", *arrays)
    here = _here(shard, axis_name)
    own = _shards.state(here, arrays)
    top = lax.pmax(lax.stop_gradient(own.top), axis_name)
    terms = _shards.summands(here, own, top)
    sums = lax.psum((*terms, *_shards.details(here, arrays, top)), axis_name)
    state = _shards.joined(here, arrays, own, top, sums[: len(terms)])
    lse, log_prob, entropy = monoid.lse_log_prob_entropy(_namespace, state, *sums[len(terms) :])
    flat, indices, soft = arrays[0], arrays[1], shard.spec.soft
    kept = jnp.ones_like(loss, dtype=bool)
    if shard.spec.ignore_index is not None:
        kept = indices[:, 0] != shard.spec.ignore_index
    searched = [jnp.where(kept[:, None], flat, 0), *([indices] if soft else [])]
    prediction, *wanted = _first_largest(here, axis_name, lax.stop_gradient(searched))
    prediction = jnp.where(kept, prediction, 0)
    correct = kept & (prediction == (wanted[0] if soft else indices[:, 0]))
    fields = (field.astype(rows.dtype) for field in (loss, lse, log_prob, entropy))
    return RowStats(*(jnp.reshape(field, rows.shape) for field in (*fields, correct, prediction)))
