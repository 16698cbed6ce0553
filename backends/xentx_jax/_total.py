"""A sum that carries its rounding errors along, for where JAX has no float64.

It is one reduction of expansions, a sum and its errors, so that shapes may be symbols and XLA can
split it over devices. It is a primitive since autodiff would take the steps apart: it is linear.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from xentx._core.reduction import two_sum
from xentx._types import Array

Axes = tuple[int, ...]

total_p: Any = Primitive("xentx_total")


def total(x: Array) -> Array:
    """Sum of everything."""
    return total_p.bind(x, axes=tuple(range(x.ndim)))


def _add(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Add two expansions of three terms.

    XLA may add the rows one after the other. Then the errors of two terms would grow with their
    number: the third term collects them.
    """
    (high_a, middle_a, low_a), (high_b, middle_b, low_b) = a, b
    high, error = two_sum(jnp, high_a, high_b)
    middle, low = two_sum(jnp, middle_a, middle_b)
    middle, lower = two_sum(jnp, middle, error)
    return high, middle, low_a + low_b + (low + lower)


def _sum(x: Array, *, axes: Axes) -> Array:
    zero, zeros = jnp.zeros((), x.dtype), jnp.zeros_like(x)
    high, middle, low = lax.reduce((x, zeros, zeros), (zero, zero, zero), _add, axes)
    return high + (middle + low)


def _aval(x: Any, *, axes: Axes) -> Any:
    kept = [d for d in range(x.ndim) if d not in axes]
    changes: dict[str, Any] = {"shape": tuple(x.shape[d] for d in kept), "weak_type": False}
    if hasattr(x, "sharding"):  # which older versions keep out of types
        spec = PartitionSpec(*(x.sharding.spec[d] for d in kept))
        changes["sharding"] = NamedSharding(x.sharding.mesh, spec)
    return x.update(**changes)


def _transpose(cotangent: Array, x: Any, *, axes: Axes) -> list[Array]:
    (gradient,) = jax.linear_transpose(lambda v: jnp.sum(v, axes), x.aval)(cotangent)
    return [gradient]


def _batch(operands: Sequence[Array], at: Sequence[int], *, axes: Axes) -> tuple[Array, int]:
    (x,), (batch,) = operands, at
    moved = tuple(d + (d >= batch) for d in axes)
    return total_p.bind(x, axes=moved), sum(d not in moved for d in range(batch))


total_p.def_impl(functools.partial(jax.jit, static_argnames="axes")(_sum))
total_p.def_abstract_eval(_aval)
ad.deflinear2(total_p, _transpose)
batching.primitive_batchers[total_p] = _batch
mlir.register_lowering(total_p, mlir.lower_fun(_sum, multiple_results=False))
