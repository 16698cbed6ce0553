"""The core's derivatives as a jax.custom_jvp, which JAX transposes for reverse mode."""

import functools
from dataclasses import replace
from typing import Any

import jax

from xentx._backend import Operation
from xentx._core._spec import LossSpec
from xentx._types import Array
from xentx_jax import _namespace


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attached(operation: Operation, spec: LossSpec, *arrays: Array | None) -> Array:
    return operation.forward(_namespace, replace(spec, final=True), *arrays)[0]


@functools.partial(_attached.defjvp, symbolic_zeros=True)
def _jvp(
    operation: Operation,
    spec: LossSpec,
    arrays: tuple[Array | None, ...],
    tangents: tuple[Any, ...],
) -> tuple[Array, Array]:
    value, residuals = operation.forward(_namespace, spec, *arrays)
    zero = jax.custom_derivatives.SymbolicZero
    known = tuple(None if isinstance(t, zero) else t for t in tangents)
    return value, operation.jvp(_namespace, spec, arrays, residuals, known)


@functools.partial(jax.jit, static_argnums=(0, 1))
def attach(operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]) -> Array:
    """Value of the operation, differentiable to any order, forward and reverse."""
    return _attached(operation, spec, *arrays)
