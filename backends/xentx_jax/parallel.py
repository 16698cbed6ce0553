"""Losses whose classes are spread over devices: tensor parallel training inside `jax.shard_map`.

The last axis of the logits is cut into equal parts along one axis of the mesh, or several. The rows
are the same on every device of these axes, and so are class indices, sample weights and the value.
Class probabilities and class weights are cut as the logits are.

A loss takes two collectives: ``pmax`` of one number a row, and ``psum`` of three, or of four with
weights, smoothing or class probabilities. They grow with the rows, and not with the classes. The
backward by the logits takes none.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from xentx import _registry, _shards, _validation
from xentx._checks import Reduction
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import partials as monoid
from xentx._core._spec import is_given
from xentx._core.partials import Partials
from xentx._shards import Arrays, Shard
from xentx_jax import _namespace
from xentx_jax._arrays import BACKEND

__all__ = ["cross_entropy"]

Array = jax.Array
Axis = str | tuple[str, ...]


def _joined(
    shard: Shard, axis: Axis, arrays: Arrays, extra: Sequence[Array] = ()
) -> tuple[Partials, tuple[Array, ...]]:
    """Return the state of all classes, and the sums of further numbers of each row."""
    own = _shards.state(shard, arrays)
    top = lax.pmax(lax.stop_gradient(own.top), axis)
    terms = _shards.summands(shard, own, top)
    sums = lax.psum((*terms, *extra), axis)
    return _shards.joined(shard, arrays, own, top, sums[: len(terms)]), sums[len(terms) :]


def _here(static: Shard, axis: Axis) -> Shard:
    """Place a shard, which is hashable without its place."""
    return replace(static, start=lax.axis_index(axis) * static.size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _losses(
    static: Shard, axis: Axis, reduction: str, *arrays: Array | None
) -> tuple[Array, Array | None]:
    """Each row's loss, and what it adds to the divisor of a mean where that is a sum."""
    losses, amounts, _ = _solved(static, axis, reduction, arrays)
    return losses, amounts


def _solved(
    static: Shard, axis: Axis, reduction: str, arrays: Arrays
) -> tuple[Array, Array | None, Partials]:
    shard = _here(static, axis)
    has_amounts = shard.has_amounts(reduction)
    # With these the target's distribution sums to what is added.
    is_mass = reduction == "weighted_mean" or not is_given(shard.spec.label_smoothing)
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
    """By the logits from the state of all classes; by the others as JAX differentiates."""
    shard = _here(static, axis)
    losses, amounts, state = _solved(static, axis, reduction, arrays)
    zero = jax.custom_derivatives.SymbolicZero
    moved = [i for i, t in enumerate(tangents) if t is not None and not isinstance(t, zero)]
    by_losses = jnp.zeros_like(losses)
    by_amounts = None if amounts is None else jnp.zeros_like(amounts)
    if 0 in moved:
        spec = _shards.prepared(shard, arrays).bound
        logits, target, weight, *_ = arrays
        slope = monoid.gradient(_namespace, spec, state, logits, target, weight, shard.start)
        tangent = tangents[0].astype(slope.dtype)
        share = jnp.sum(slope * tangent, axis=1, dtype=losses.dtype)
        by_losses = by_losses + lax.psum(share, axis)
    others = [i for i in moved if i > 0]
    if others:

        def plain(*values: Array) -> Any:
            given = list(arrays)
            for i, value in zip(others, values, strict=True):
                given[i] = value
            losses, amounts, _ = _solved(static, axis, reduction, tuple(given))
            return losses, amounts

        given, directions = ([x[i] for i in others] for x in (arrays, tangents))
        _, (more, by_amounts) = jax.jvp(plain, given, directions)
        by_losses = by_losses + more
    return (losses, amounts), (by_losses, by_amounts)


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
    """`xentx.cross_entropy` of logits whose classes are spread over an axis of the mesh.

    To be called in a function that `jax.shard_map` maps.

    Parameters
    ----------
    logits : jax.Array
        This device's part of the logits, its classes on the last axis. All devices have as many.
    target : jax.Array
        Class indices, counted from the first class of all devices, the same on every device; or
        this device's part of class probabilities.
    axis_name : str or tuple of str
        The axis of the mesh, or the axes, over which the classes are spread.
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
        As in `xentx.cross_entropy`. It is over the rows that the device has. Where rows are spread
        over another axis, ``psum`` a "sum" and its normalizer over that, and divide.
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
    It can be differentiated to any order, in both modes. Only derivatives by class weights, class
    probabilities and options take collectives of their own. Without JAX's 64-bit mode the states
    are float32, and the loss has the error of as many float32 sums.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax.sharding import PartitionSpec as P
    >>> from xentx_jax import parallel
    >>> mesh = jax.make_mesh((1,), ("vocabulary",))
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
    if not BACKEND.owns(logits):
        msg = f"logits: got {_registry.describe(logits)}; expected a jax array"
        raise TypeError(msg)
    problem = _validation.rowwise(
        BACKEND,
        _cross_entropy,
        logits,
        target,
        axis=-1,
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
    shape, size = logits.shape[:-1], logits.shape[-1]
    shard, arrays, rows = _shards.lay_out(
        problem,
        jnp.reshape(logits, (math.prod(shape), size)),
        shape,
        logits.dtype,
        size=size,
        classes=size * lax.axis_size(axis_name),
        start=None,
    )
    is_mean = rows.reduction in ("mean", "weighted_mean")
    wanted = rows.reduction if is_mean or not return_normalizer else "mean"
    amounts_of = "none" if rows.normalizer is not None else wanted
    losses, amounts = _losses(shard, axis_name, amounts_of, *arrays)
    divisor = None
    if is_mean or return_normalizer:
        divisor = _shards.divisor(shard, arrays, rows, losses, amounts)
    value = _shards.reduce(shard, rows, losses, divisor if is_mean else None)
    return (value, divisor) if return_normalizer else value
