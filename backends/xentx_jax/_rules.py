"""Differentiation and batching rules of the kernel's primitives.

The portable core computes derivatives that the kernel lacks: of second order, and with respect to
targets and weights. A batch is a group of the kernel, which reduces each group separately.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from xentx._core.per_row import REAL_FIELDS
from xentx._types import Array
from xentx_jax._primitives import (
    PORTABLE,
    Call,
    by_portable_core,
    call_of,
    is_ones,
    loss_and_gradient_p,
    loss_p,
    pullback_p,
    stats_p,
    stats_pullback_p,
    stats_tangent_p,
    tangent_p,
)


def _portable_tangents(
    primitive: Any,
    primals: Sequence[Array],
    tangents: Sequence[Any],
    places: Sequence[int],
    call: Call,
) -> Sequence[Any]:
    """Tangents with respect to the operands at `places`, by the portable core."""
    places = [i for i in places if _moves(tangents[i])]
    if not places:
        return []

    def function(*values: Array) -> tuple[Array, ...]:
        operands = list(primals)
        for i, value in zip(places, values, strict=True):
            operands[i] = value
        return by_portable_core(primitive, *operands, call=call)

    return jax.jvp(function, [primals[i] for i in places], [tangents[i] for i in places])[1]


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, ad.Zero)


def _may_be_transposed(primal: Array, tangent: Array) -> bool:
    """Whether the tangent is traced separately from the primal: by linearize, not by jvp."""
    return getattr(primal, "_trace", None) is not getattr(tangent, "_trace", None)


def _loss_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    # The cotangent of a batch of losses is usually not ones.
    alone = call.reduced and call.groups is None
    if alone and _moves(tangents[0]) and _may_be_transposed(primals[0], tangents[0]):
        value, *known = loss_and_gradient_p.bind(*primals, call=call)
    else:
        (value,), known = loss_p.bind(*primals, call=call), []
    return [value], [_value_tangent(value, primals, tangents, known, call)]


def _value_tangent(
    value: Array,
    primals: Sequence[Array],
    tangents: Sequence[Any],
    known: Sequence[Array],
    call: Call,
) -> Any:
    terms = list(_portable_tangents(loss_p, primals, tangents, range(1, len(primals)), call))
    if _moves(tangents[0]):
        linear = call.knowing(bool(known))
        terms += tangent_p.bind(*primals, tangents[0], *known, call=linear)
    return functools.reduce(ad.add_tangents, terms, ad.Zero(jax.typeof(value)))


def _loss_and_gradient_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    at = call.count
    value, gradient = loss_and_gradient_p.bind(*primals, call=call)
    everywhere = range(len(primals))
    _, gradient_tangent = _portable_tangents(
        loss_and_gradient_p, primals, tangents, everywhere, call
    )
    known = [gradient] if call.reduced and len(primals) == at else []  # for ones, that is
    value_tangent = _value_tangent(value, primals[:at], tangents[:at], known, call)
    return [value, gradient], [value_tangent, gradient_tangent]


def _seeded_jvp(
    primitive: Any, primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    """Linear in the seed. A known gradient is no variable: it follows from the arrays."""
    at = call.count
    terms = list(_portable_tangents(primitive, primals, tangents, range(at), call))
    if _moves(tangents[at]):
        operands = [*primals[:at], tangents[at], *primals[at + 1 :]]
        terms += primitive.bind(*operands, call=call)
    return primitive.bind(*primals, call=call), [functools.reduce(ad.add_tangents, terms)]


def _seeded_transpose(
    primitive: Any, cotangents: Sequence[Any], *operands: Any, call: Call
) -> list[Any]:
    """The two seeded primitives are each other's transpose."""
    (cotangent,) = cotangents
    at = call.count
    result: list[Any] = [None] * len(operands)
    if not _moves(cotangent):
        result[at] = ad.Zero(operands[at].aval)
    elif primitive is pullback_p:
        (result[at],) = tangent_p.bind(*operands[:at], cotangent, *operands[at + 1 :], call=call)
    elif call.known and is_ones(cotangent):
        result[at] = operands[-1]
    else:
        (result[at],) = pullback_p.bind(*operands[:at], cotangent, *operands[at + 1 :], call=call)
    return result


# Row statistics. No gradient of theirs is known before its cotangents.


def _stats_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    fields = stats_p.bind(*primals, call=call)
    by_others = _portable_tangents(stats_p, primals, tangents, range(1, len(primals)), call)
    terms = [by_others[:REAL_FIELDS]] if by_others else []
    if _moves(tangents[0]):
        terms.append(stats_tangent_p.bind(*primals, tangents[0], call=call))
    zeros = [ad.Zero(jax.typeof(field).to_tangent_aval()) for field in fields]
    return fields, [*_sums(terms, zeros[:REAL_FIELDS]), *zeros[REAL_FIELDS:]]


def _sums(terms: Sequence[Sequence[Any]], start: Sequence[Any]) -> list[Any]:
    """Add up tangents of several results."""
    return [functools.reduce(ad.add_tangents, each) for each in zip(start, *terms, strict=True)]


def _stats_seeded_jvp(
    primitive: Any, primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    """Linear in the seeds."""
    at = call.count
    results = primitive.bind(*primals, call=call)
    by_arrays = _portable_tangents(primitive, primals, tangents, range(at), call)
    terms = [by_arrays] if by_arrays else []
    if any(_moves(tangent) for tangent in tangents[at:]):
        seeds = [ad.instantiate_zeros(tangent) for tangent in tangents[at:]]
        terms.append(primitive.bind(*primals[:at], *seeds, call=call))
    return results, _sums(terms, [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in results])


def _stats_transpose(
    primitive: Any, cotangents: Sequence[Any], *operands: Any, call: Call
) -> list[Any]:
    """The two seeded primitives are each other's transpose."""
    at = call.count
    arrays, seeds = operands[:at], operands[at:]
    if any(_moves(cotangent) for cotangent in cotangents):
        given = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
        other = stats_tangent_p if primitive is stats_pullback_p else stats_pullback_p
        results = other.bind(*arrays, *given, call=call)
    else:
        results = [ad.Zero(seed.aval) if ad.is_undefined_primal(seed) else None for seed in seeds]
    pairs = zip(seeds, results, strict=True)
    return [None] * at + [x if ad.is_undefined_primal(seed) else None for seed, x in pairs]


# vmap.


def _batch(
    primitive: Any, operands: Sequence[Array], axes: Sequence[int | None], *, call: Call
) -> tuple[list[Array], list[int]]:
    """Make a group of each problem: the kernel's groups are reduced apart, and bits stay."""
    at = call.count
    (size,) = {x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None}
    known = call.known and axes[-1] is not None
    if call.known and not known:
        operands, axes = operands[:-1], axes[:-1]
    had = list(call.grouped) + [call.groups is not None] * (len(operands) - at)
    has = [axis is not None or had[i] or i >= at for i, axis in enumerate(axes)]
    moved = [
        _grouped(x, axis, size, call.groups, had[i]) if has[i] else x
        for i, (x, axis) in enumerate(zip(operands, axes, strict=True))
    ]
    groups = size if call.groups is None else size * call.groups
    batched = call_of(call.kind, call.given, groups, tuple(has[:at]), known)
    results = primitive.bind(*moved, call=batched)
    if call.groups is not None:
        results = [jnp.reshape(x, (size, call.groups, *x.shape[1:])) for x in results]
    return results, [0] * len(results)


def _grouped(x: Array, axis: int | None, size: int, groups: int | None, had: bool) -> Array:  # noqa: FBT001
    """Lay a batch axis in front, merged with the groups that there are."""
    x = jnp.expand_dims(x, 0) if axis is None else jnp.moveaxis(x, axis, 0)
    if groups is None:
        return jnp.broadcast_to(x, (size, *x.shape[1:]))
    if not had:
        x = jnp.expand_dims(x, 1)
    x = jnp.broadcast_to(x, (size, groups, *x.shape[2:]))
    return jnp.reshape(x, (size * groups, *x.shape[2:]))


for _primitive in PORTABLE:
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
ad.primitive_jvps[loss_p] = _loss_jvp
ad.primitive_jvps[loss_and_gradient_p] = _loss_and_gradient_jvp
for _primitive in (tangent_p, pullback_p):
    ad.primitive_jvps[_primitive] = functools.partial(_seeded_jvp, _primitive)
    ad.primitive_transposes[_primitive] = functools.partial(_seeded_transpose, _primitive)
ad.primitive_jvps[stats_p] = _stats_jvp
for _primitive in (stats_tangent_p, stats_pullback_p):
    ad.primitive_jvps[_primitive] = functools.partial(_stats_seeded_jvp, _primitive)
    ad.primitive_transposes[_primitive] = functools.partial(_stats_transpose, _primitive)
