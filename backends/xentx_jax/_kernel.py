"""The CPU kernel under JAX, as primitives with rules for all transformations.

On CPUs all primitives call the kernel, except those of tangents. The portable core computes these,
all primitives on other platforms, and arrays that XLA partitions itself. It also computes the
derivatives that the kernel lacks: of second order, and with respect to targets and weights.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentx._calls import Kind, impossible
from xentx._types import Array
from xentx_jax import _rules  # noqa: F401 -- registers the rules of the primitives
from xentx_jax._lowering import unusable
from xentx_jax._primitives import Call, call_of, loss_and_gradient_p, loss_p, pullback_p, stats_p

__all__ = ["declines", "row_stats", "solve", "solve_with_gradient", "unusable"]

Aval = Any
Arrays = tuple[Array | None, ...]


def declines(array: Array) -> str | None:
    """Return why the kernel computes no loss of `array`. None if it is on one CPU."""
    aval = jax.typeof(array)
    if not _is_plain(aval):
        if all(isinstance(size, int) for size in aval.shape):
            return "the array's sharding is explicit; the CPU kernel takes arrays of one CPU"
        return f"the array has the symbolic shape {aval.shape}; the CPU kernel takes known sizes"
    if isinstance(array, jax.core.Tracer):
        return None  # the platform is known when it is compiled
    platforms = sorted(device.platform for device in array.devices())
    if platforms == ["cpu"]:
        return None
    where = f"{len(platforms)} devices" if platforms[1:] else f"a device of {platforms[0]}"
    return f"the array is on {where}; the CPU kernel takes arrays of one CPU"


def solve(kind: Kind, arrays: Arrays) -> Array | None:
    """Value, which JAX can differentiate and batch. None if the kernel cannot compute it."""
    present = _present(kind, arrays)
    if present is None:
        return None
    return loss_p.bind(*present, call=_call_for(kind, arrays))[0]


def row_stats(kind: Kind, arrays: Arrays) -> tuple[Array, ...] | None:
    """Fields of RowStats. None as in `solve`."""
    present = _present(kind, arrays)
    return None if present is None else tuple(stats_p.bind(*present, call=_call_for(kind, arrays)))


def solve_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: Array | None, *, overwrite: bool = False
) -> tuple[Array, Array] | None:
    """Value and gradient in one pass over the logits. None as in `solve`."""
    present = _present(kind, arrays)
    if present is None:
        return None
    call = _call_for(kind, arrays, overwrite=overwrite)
    seeds = [] if cotangent is None else [cotangent.astype(kind.spec.precision.compute)]
    if not kind.operation.IS_ROWWISE:
        (value,) = loss_p.bind(*present, call=call)
        operands = _vary_alike([*present, *(seeds or [jnp.ones_like(value)])])
        return value, pullback_p.bind(*operands, call=call)[0]
    value, gradient = loss_and_gradient_p.bind(*_vary_alike([*present, *seeds]), call=call)
    return value, gradient


def _call_for(kind: Kind, arrays: Arrays, *, overwrite: bool = False) -> Call:
    given = tuple(array is not None for array in arrays)
    call: Call | None = kind.plans.get((given, overwrite))
    if call is None:
        grouped = (False,) * sum(given)
        call = kind.plans[given, overwrite] = call_of(kind, given, None, grouped, False, overwrite)  # noqa: FBT003
    return call


def _present(kind: Kind, arrays: Arrays) -> list[Array] | None:
    """Return the given arrays. None if the kernel does not support them."""
    present = [array for array in arrays if array is not None]
    if unusable() or not all(_is_plain(jax.typeof(array)) for array in present):
        return None
    if _is_out_of_range(kind, arrays[1]):
        return None
    return _vary_alike(present)


def _is_out_of_range(kind: Kind, target: Array | None) -> bool:
    """Whether a concrete class index is out of range. The core raises the error."""
    if target is None or kind.spec.soft or isinstance(target, jax.core.Tracer):
        return False
    if not target.is_fully_addressable:
        return False
    return bool(impossible(np.asarray(target), kind.spec).any())


def _is_plain(aval: Aval) -> bool:
    """Whether the shape is known, and the sharding is not part of the type."""
    mesh = aval.sharding.mesh
    if not mesh.empty and jax.sharding.AxisType.Explicit in mesh.axis_types:
        return False
    return all(isinstance(size, int) for size in aval.shape)


def _vary_alike(arrays: Sequence[Array]) -> list[Array]:
    """Under shard_map, let all arrays vary over the mesh axes that any of them varies over."""
    varying = [_varying(jax.typeof(array)) for array in arrays]
    if not any(varying):
        return list(arrays)
    union = frozenset[str]().union(*varying)
    return [
        _vary(array, tuple(union - axes)) if union - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    ]


# These have other names in older versions.
def _varying(aval: Aval) -> frozenset[str]:
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma


def _vary(array: Array, axes: tuple[str, ...]) -> Array:
    lax: Any = jax.lax
    return lax.pcast(array, axes, to="varying") if hasattr(lax, "pcast") else lax.pvary(array, axes)
