"""JAX's `linear_cross_entropy`: tiles as XLA's loops, and every transformation.

A reduced loss is a custom_jvp. Its rule computes the gradients of hidden, head and bias together
with the value. The tangent is the sum of their products with the tangents, and its transpose is the
product of the gradients and the cotangent. If the gradients need the cotangent, the tangent is a
primitive with a transpose rule. Other derivatives use the plain expression, in a loop whose body is
computed again for the transpose.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xentx import _linear
from xentx._calls import Linear, in_places, replaced
from xentx._core.tiles import Tiles
from xentx._types import Array
from xentx_jax import _namespace

Arrays = tuple[Array | None, ...]
FACTORS = 3


class JAXTiles(Tiles):
    """Immutable arrays in XLA's loops, which write in place."""

    def loop(self, count: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
        if count <= 1:  # a body of more rows than the arrays have cannot be traced
            return super().loop(count, step, carry)
        return lax.fori_loop(0, count, step, carry)

    def zeros(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:  # noqa: ARG002
        return jnp.zeros(shape, dtype)

    def take(self, x: Array, start: Any, size: int, axis: int = 0) -> Array:
        return lax.dynamic_slice_in_dim(x, start, size, axis)

    def put(self, x: Array, start: Any, block: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), start, 0)

    def add(self, x: Array, start: Any, block: Array) -> Array:
        return self.put(x, start, self.take(x, start, block.shape[0]) + block)

    def logits(self, hidden: Array, head: Array, bias: Array | None) -> Array:
        product = lax.dot_general(hidden, head, (((1,), (1,)), ((), ())))
        return product if bias is None else product + bias

    def pull(self, slope: Array, hidden: Array) -> Array:
        return lax.dot_general(slope, hidden, (((0,), (0,)), ((), ())))


class SymbolicTiles(JAXTiles):
    """Tiles for a symbolic number of rows, for jax.export.

    The last tile may extend beyond the rows. There it reads zeros, also as cotangents, and what it
    writes is dropped.
    """

    def chunks(self, count: Any, size: Any, step: Callable[..., Any], carry: Any) -> Any:
        if isinstance(count, int):
            return super().chunks(count, size, step, carry)
        whole = (count + size - 1) // size
        return lax.fori_loop(0, whole, lambda i, carry: step(i * size, size, carry), carry)

    def take(self, x: Array, start: Any, size: int, axis: int = 0) -> Array:
        places = start + jnp.arange(size)
        return jnp.take(x, places, axis=axis, mode="fill", fill_value=0)

    def put(self, x: Array, start: Any, block: Array) -> Array:
        places = start + jnp.arange(block.shape[0])
        return x.at[places].set(block.astype(x.dtype), mode="drop")

    def add(self, x: Array, start: Any, block: Array) -> Array:
        places = start + jnp.arange(block.shape[0])
        return x.at[places].add(block.astype(x.dtype), mode="drop")


_TILES, _SYMBOLIC = JAXTiles(_namespace), SymbolicTiles(_namespace)


def tiles(array: Array) -> Tiles:
    """Return the tiles of arrays like this one."""
    return _TILES if all(isinstance(size, int) for size in array.shape) else _SYMBOLIC


@functools.partial(jax.jit, static_argnums=0)
def _attached(linear: Linear, arrays: Arrays) -> Array:
    return _value(linear, *arrays)


def view(array: Array) -> None:
    """Return None: compiled arrays have no memory yet, and XLA fuses the core's operations."""


def threads() -> int:
    """Return 0: the threads are XLA's."""
    return 0


def attach(linear: Linear, arrays: Arrays) -> Array:
    """Value of the problem, differentiable by every array and to any order."""
    _linear.check_target(linear, arrays)
    return _attached(linear, arrays)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _solved(
    linear: Linear, arrays: Arrays, cotangent: Array | None, needs: tuple[bool, ...]
) -> tuple[Array, _linear.LinearGradients[Array]]:
    return _linear.solve_with_gradients(linear, arrays, cotangent, needs)


def solve_with_gradients(
    linear: Linear, arrays: Arrays, cotangent: Array | None, needs: Sequence[bool]
) -> tuple[Array, _linear.LinearGradients[Array]]:
    """Value and gradients."""
    _linear.check_target(linear, arrays)
    return _solved(linear, arrays, cotangent, tuple(needs))


def by_chunks(
    function: Callable[..., tuple[Array, ...]],
    size: int,
    mapped: tuple[Array, ...],
    whole: Arrays,
) -> tuple[Array, ...]:
    """Join ``function(*chunks of mapped, *whole)``. Only the inputs are kept for the backward."""
    count = mapped[0].shape[0]
    again = jax.checkpoint(function)
    if not isinstance(count, int):
        # Padded with rows of zeros to whole chunks, because a symbol cannot be compared.
        padded = (count + size - 1) // size * size
        filled = (_SYMBOLIC.take(a, 0, padded) for a in mapped)
        stacked = tuple(a.reshape(-1, size, *a.shape[1:]) for a in filled)
        joined = lax.map(lambda parts: again(*parts, *whole), stacked)
        return tuple(a.reshape(padded, *a.shape[2:])[:count] for a in joined)
    if count <= size:
        return function(*mapped, *whole)
    chunks, rest = divmod(count, size)
    stacked = tuple(a[: chunks * size].reshape(chunks, size, *a.shape[1:]) for a in mapped)
    joined = lax.map(lambda parts: again(*parts, *whole), stacked)
    results = tuple(a.reshape(chunks * size, *a.shape[2:]) for a in joined)
    if not rest:
        return results
    last = again(*(a[chunks * size :] for a in mapped), *whole)
    return tuple(jnp.concatenate(parts) for parts in zip(results, last, strict=True))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(linear: Linear, *arrays: Array | None) -> Array:
    return _linear.solve(linear, arrays)


@functools.partial(_value.defjvp, symbolic_zeros=True)
def _value_jvp(linear: Linear, arrays: Arrays, tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    directions = known(tangents)
    if any(direction is not None for direction in directions[FACTORS:]):
        return plain_jvp(lambda *given: _linear.plain(linear, given), arrays, directions)
    moved = tuple(i for i, direction in enumerate(directions) if direction is not None)
    if not linear.grads_in_forward:
        present = [array for array in arrays if array is not None]
        given = tuple(array is not None for array in arrays)
        factors = [directions[i] for i in moved]
        (tangent,) = tangent_p.bind(*factors, *present, linear=linear, moved=moved, given=given)
        return _value(linear, *arrays), tangent
    value, gradients = _with_gradients(linear, moved, *arrays)
    terms = [jnp.sum(g * directions[i]) for i, g in zip(moved, gradients, strict=True)]
    return value, sum(terms[1:], start=terms[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _with_gradients(linear: Linear, moved: tuple[int, ...], *arrays: Array | None) -> Any:
    """Value and gradients with respect to the moved operands, for a cotangent of 1."""
    needs = [i in moved for i in range(FACTORS + 1)]
    value, gradients = _linear.solve_with_gradients(linear, arrays, None, needs)
    return value, [gradients[i] for i in moved]


@functools.partial(_with_gradients.defjvp, symbolic_zeros=True)
def _with_gradients_jvp(
    linear: Linear, moved: tuple[int, ...], arrays: Arrays, tangents: tuple[Any, ...]
) -> Any:
    def both(*arrays: Array | None) -> Any:
        factors = [arrays[i] for i in moved]
        return jax.value_and_grad(lambda v: _plain(linear, arrays, moved, v))(factors)

    return plain_jvp(both, arrays, known(tangents))


# The tangent if the gradients need the cotangent: for reduction="none" and for gradients that are
# rounded to a narrow dtype. It is linear in its first operands, and `_gradients` is its transpose.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradients(
    linear: Linear, moved: tuple[int, ...], cotangent: Array, *arrays: Array | None
) -> list[Array]:
    needs = [i in moved for i in range(FACTORS + 1)]
    _, gradients = _linear.solve_with_gradients(linear, arrays, cotangent, needs)
    return [gradients[i] for i in moved]


@functools.partial(_gradients.defjvp, symbolic_zeros=True)
def _gradients_jvp(
    linear: Linear, moved: tuple[int, ...], operands: Arrays, tangents: tuple[Any, ...]
) -> Any:
    def pull(cotangent: Array, *arrays: Array | None) -> Any:
        factors = [arrays[i] for i in moved]
        return jax.vjp(lambda v: _plain(linear, arrays, moved, v), factors)[1](cotangent)[0]

    return plain_jvp(pull, operands, known(tangents))


tangent_p: Any = Primitive("xentx_linear_tangent")
tangent_p.multiple_results = True


def _split(
    operands: Sequence[Array], moved: tuple[int, ...], given: tuple[bool, ...]
) -> tuple[list[Array], Arrays]:
    """Separate the tangents from the arrays, with None for arrays that are not given."""
    return list(operands[: len(moved)]), in_places(operands[len(moved) :], given)


def _tangent(
    *operands: Array, linear: Linear, moved: tuple[int, ...], given: tuple[bool, ...]
) -> list[Array]:
    directions, arrays = _split(operands, moved, given)
    factors = [arrays[i] for i in moved]
    return [jax.jvp(lambda v: _plain(linear, arrays, moved, v), [factors], [directions])[1]]


def _tangent_aval(*_: Any, linear: Linear, **__: Any) -> list[Any]:
    shape = linear.rows if linear.reduction == "none" else ()
    return [jax.core.ShapedArray(shape, linear.dtype)]


def _tangent_transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    linear: Linear,
    moved: tuple[int, ...],
    given: tuple[bool, ...],
) -> list[Any]:
    (cotangent,) = cotangents
    places, (_, arrays) = len(moved), _split(operands, moved, given)
    if isinstance(cotangent, ad.Zero):
        found: list[Any] = [ad.Zero(operand.aval) for operand in operands[:places]]
    else:
        found = _gradients(linear, moved, cotangent, *arrays)
    return [*found, *(None for _ in operands[places:])]


def _tangent_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], **static: Any
) -> tuple[list[Array], list[Any]]:
    directions = tuple(None if isinstance(t, ad.Zero) else t for t in tangents)
    return plain_jvp(lambda *operands: _tangent(*operands, **static), tuple(primals), directions)


def _tangent_batch(
    operands: Sequence[Array], axes: Sequence[int | None], **static: Any
) -> tuple[list[Array], list[int]]:
    results = jax.vmap(lambda *given: _tangent(*given, **static), tuple(axes))(*operands)
    return results, [0]


tangent_p.def_impl(
    lambda *operands, **static: jax.jit(functools.partial(_tangent, **static))(*operands)
)
tangent_p.def_abstract_eval(_tangent_aval)
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_jvps[tangent_p] = _tangent_jvp
batching.primitive_batchers[tangent_p] = _tangent_batch
mlir.register_lowering(tangent_p, mlir.lower_fun(_tangent, multiple_results=True))


def _plain(
    linear: Linear, arrays: Arrays, places: tuple[int, ...], values: Sequence[Array]
) -> Array:
    """Value by the plain expression, with some arrays replaced."""
    return _linear.plain(linear, replaced(arrays, places, values))


def known(tangents: tuple[Any, ...]) -> tuple[Array | None, ...]:
    """Return tangents that are not known to be zero, and None for the others."""
    zero = jax.custom_derivatives.SymbolicZero
    return tuple(None if t is None or isinstance(t, zero) else t for t in tangents)


def plain_jvp(function: Callable[..., Any], arrays: Arrays, tangents: Arrays) -> Any:
    """Return the jvp of ``function(*arrays)`` for the tangents that are not None."""
    moved = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def of_moved(*values: Array) -> Any:
        return function(*replaced(arrays, moved, values))

    return jax.jvp(of_moved, [arrays[i] for i in moved], [tangents[i] for i in moved])
