"""The kernel's primitives: their operands, their shapes, and their computation by the core.

With a custom_jvp around jax.ffi, vmap would loop or broadcast, and reverse mode could not choose
what to save. Therefore there are primitives. Each has a static parameter, a `Call`:

- ``loss``: the value.
- ``loss_and_gradient``: the value, and the gradient for a cotangent of ones, in one pass. For a
  reduced loss in reverse mode, as in a training step.
- ``tangent``: the tangent of the value, linear in that of the logits. It can be transposed.
- ``pullback``: its transpose, the gradient for a cotangent. If the gradient for ones is known and
  the cotangent is 1, it returns that gradient. Otherwise it computes the gradient again with the
  cotangent, because the scaled gradient would be rounded twice.
- ``stats``, ``stats_tangent`` and ``stats_pullback``: the same for the fields of RowStats. The
  first four have derivatives.

`_rules` differentiates and batches them. `_lowering` runs them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Primitive
from jax.sharding import NamedSharding, PartitionSpec

from xentx import _evaluate
from xentx._calls import Kind, in_places
from xentx._core.per_row import REAL_FIELDS
from xentx._types import Array

Aval = Any


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """The static parameter of a primitive. Its operands: the arrays, a seed, a known gradient.

    `call_of` makes one object for each set of values, so that JAX compares by identity, which is
    fast.

    Parameters
    ----------
    kind
        The checked call without its arrays.
    given
        Which of the five arrays are given.
    groups
        The number of problems under vmap. None outside of it.
    grouped
        Which of the given arrays have a leading axis for the groups. A seed and a known gradient
        always have it.
    known
        Whether the last operand is the gradient for ones.
    overwrites
        Whether ``loss_and_gradient`` may write the gradient to the memory of the logits. If they
        are used elsewhere, XLA copies them first.
    """

    kind: Kind
    given: tuple[bool, ...]
    groups: int | None
    grouped: tuple[bool, ...]
    known: bool
    overwrites: bool = False

    @property
    def count(self) -> int:
        """The number of arrays, which is also the place of the seed."""
        return len(self.grouped)

    @property
    def reduced(self) -> bool:
        """Whether the value is one number."""
        return self.kind.is_reduced

    def knowing(self, known: bool) -> "Call":  # noqa: FBT001
        """Return the same with or without a known gradient."""
        return call_of(self.kind, self.given, self.groups, self.grouped, known)


@functools.cache
def call_of(
    kind: Kind,
    given: tuple[bool, ...],
    groups: int | None,
    grouped: tuple[bool, ...],
    known: bool = False,  # noqa: FBT001, FBT002
    overwrites: bool = False,  # noqa: FBT001, FBT002
) -> Call:
    return Call(kind, given, groups, grouped, known, overwrites)


loss_p: Any = Primitive("xentx_loss")
loss_and_gradient_p: Any = Primitive("xentx_loss_and_gradient")
tangent_p: Any = Primitive("xentx_tangent")
pullback_p: Any = Primitive("xentx_pullback")
stats_p: Any = Primitive("xentx_row_stats")
stats_tangent_p: Any = Primitive("xentx_row_stats_tangent")
stats_pullback_p: Any = Primitive("xentx_row_stats_pullback")


# The computation of each primitive by the portable core.


def _arrays(call: Call, present: Sequence[Array]) -> tuple[Array | None, ...]:
    return in_places(present, call.given)


def _function(call: Call) -> Callable[..., Array]:
    return lambda *present: _evaluate.portable(call.kind, _arrays(call, present))


def _by_logits(call: Call, arrays: Sequence[Array]) -> Callable[[Array], Array]:
    return lambda logits: _function(call)(logits, *arrays[1:])


def _loss(call: Call, *arrays: Array) -> tuple[Array, ...]:
    return (_function(call)(*arrays),)


def _loss_and_gradient(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seeds = operands[: call.count], operands[call.count :]
    value, pull = jax.vjp(_by_logits(call, arrays), arrays[0])
    seed = seeds[0].astype(value.dtype) if seeds else jnp.ones_like(value)
    return value, pull(seed)[0]


def _tangent(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seed = operands[: call.count], operands[call.count]
    return (jax.jvp(_by_logits(call, arrays), arrays[:1], (seed,))[1],)


def _pullback(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seed = operands[: call.count], operands[call.count]
    return jax.vjp(_by_logits(call, arrays), arrays[0])[1](seed)


def _stats(call: Call, *arrays: Array) -> tuple[Array, ...]:
    return _evaluate.portable_row_stats(call.kind, _arrays(call, arrays))


def _real_stats(call: Call, arrays: Sequence[Array]) -> Callable[[Array], tuple[Array, ...]]:
    return lambda logits: _stats(call, logits, *arrays[1:])[:REAL_FIELDS]


def _stats_tangent(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seed = operands[: call.count], operands[call.count]
    return jax.jvp(_real_stats(call, arrays), arrays[:1], (seed,))[1]


def _stats_pullback(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seeds = operands[: call.count], operands[call.count :]
    return jax.vjp(_real_stats(call, arrays), arrays[0])[1](seeds)


PORTABLE = {
    loss_p: _loss,
    loss_and_gradient_p: _loss_and_gradient,
    tangent_p: _tangent,
    pullback_p: _pullback,
    stats_p: _stats,
    stats_tangent_p: _stats_tangent,
    stats_pullback_p: _stats_pullback,
}


def by_portable_core(primitive: Any, *operands: Array, call: Call) -> tuple[Array, ...]:
    function = functools.partial(PORTABLE[primitive], call)
    if call.groups is None:
        return function(*operands)
    everywhere = (True,) * (len(operands) - len(call.grouped))
    axes = tuple(0 if grouped else None for grouped in call.grouped + everywhere)
    return jax.vmap(function, axes, axis_size=call.groups)(*operands)


# Shapes.


def _resized(aval: Aval, shape: tuple[int, ...]) -> Aval:
    spec = PartitionSpec(*(None for _ in shape))
    sharding = NamedSharding(aval.sharding.mesh, spec)
    return aval.update(shape=shape, weak_type=False, sharding=sharding)


def _value_shape(call: Call, logits: tuple[int, ...]) -> tuple[int, ...]:
    if call.reduced:
        return ()
    axis = call.kind.spec.axis
    return logits[:axis] + logits[axis + 1 :] if call.kind.operation.IS_ROWWISE else logits


def logits_shape(call: Call, logits: Aval) -> tuple[int, ...]:
    return logits.shape[1:] if call.groups is not None and call.grouped[0] else logits.shape


def _avals(primitive: Any, *avals: Aval, call: Call) -> list[Aval]:
    full = logits_shape(call, avals[0])
    groups = () if call.groups is None else (call.groups,)
    value, gradient = (
        _resized(avals[0], groups + shape) for shape in (_value_shape(call, full), full)
    )
    if primitive is loss_and_gradient_p:
        return [value, gradient]
    if primitive in (stats_p, stats_tangent_p):
        fields = [value] * REAL_FIELDS
        if primitive is stats_p:
            index = jax.dtypes.canonicalize_dtype(np.int64)  # as in jnp.argmax
            fields += [value.update(dtype=dtype) for dtype in (np.dtype(np.bool_), index)]
        return fields
    return [gradient] if primitive in (pullback_p, stats_pullback_p) else [value]


def is_ones(array: Array) -> bool:
    """Whether the values are concrete, and all of them 1."""
    literal = getattr(array, "val", None)  # of the seed of jax.grad under jit
    if isinstance(literal, Literal):
        array = literal.val
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return False
    return bool(np.all(np.asarray(array) == 1))


for _primitive in PORTABLE:
    _primitive.multiple_results = True
    _primitive.def_abstract_eval(functools.partial(_avals, _primitive))
