"""A block of the classes: its state, and its gradient from the state of all blocks.

The CPU kernel computes both if the memory is accessible and the result is not differentiated.
Otherwise the core computes.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from xentx import _calls, _kernel_blocks, _linear
from xentx._backend import Backend
from xentx._calls import Prepared, Problem, shape_of
from xentx._core import partials as monoid
from xentx._core._spec import LossSpec
from xentx._core.partials import Partials
from xentx._kernel_blocks import View
from xentx._kernel_engine import KERNEL, takes
from xentx._types import Array, Namespace


def prepare(problem: Problem, classes: int) -> Prepared:
    """Convert the problem of a block for the core, in float64. `classes` counts all blocks.

    The states are small arrays. In float64 they can be added in any order without a relevant error.
    A gradient uses the same capped or divided logits as the state.
    """
    kind, arrays = problem
    dtypes = kind.spec.precision
    logits: Array = arrays[0]
    wide = replace(dtypes, compute=dtypes.accumulate, recover=logits.dtype == dtypes.accumulate)
    spec = replace(kind.spec, precision=wide, classes=classes)
    return _calls.prepare(Problem(replace(kind, spec=spec), arrays))


def state(backend: Backend, prepared: Prepared, start: Any) -> Partials[Array]:
    """State of a block that begins at the class `start`, in the shape of the rows."""
    logits, target, weight, *_ = prepared.arrays
    seen = _seen(backend, prepared, start)
    if seen is not None:
        fields = _kernel_blocks.state_of(seen.spec, seen.view, seen.threads, *seen.block, start)
        if fields is not None:
            axis, shape = seen.spec.axis, shape_of(logits)
            rows = shape[:axis] + shape[axis + 1 :]
            return Partials(*(backend.array(field.reshape(rows), logits) for field in fields))
    xp = backend.namespace(logits)
    return monoid.partials(xp, prepared.bound, logits, target, weight, start)


def gradient(
    backend: Backend,
    prepared: Prepared,
    known: Partials[Array],
    cotangent: Array | None,
    start: Any,
) -> Array:
    """Gradient with respect to a block's logits, for a cotangent of each row (by default ones)."""
    logits: Array = prepared.arrays[0]
    _, target, weight, *_ = prepared.arrays
    spec, xp = prepared.spec, backend.namespace(logits)
    if cotangent is None:
        cotangent = xp.ones_like(known.top)
    found = _kernel_gradient(backend, prepared, known, cotangent, start)
    if found is None:
        found = monoid.gradient(xp, prepared.bound, known, logits, target, weight, start)
        seed = xp.expand_dims(xp.astype(cotangent, found.dtype, copy=False), axis=spec.axis)
        kept = xp.expand_dims(known.kept, axis=spec.axis)
        found = xp.where(kept == 0.0, 0.0, found * seed)  # also if the cotangent is NaN
    return xp.astype(found, logits.dtype, copy=False)


def _kernel_gradient(
    backend: Backend, prepared: Prepared, known: Partials[Array], cotangent: Array, start: Any
) -> Array | None:
    seen = _seen(backend, prepared, start, *known, cotangent)
    if seen is None:
        return None
    logits, axis = seen.block[0], seen.spec.axis
    xp, tiles = backend.namespace(logits), _linear.tiles_of(backend, logits)
    memory = seen.view(logits)
    if memory is None:
        return None
    # Dtypes that NumPy lacks are viewed in float32.
    same = memory.dtype.name == backend.dtype_name(logits)
    dense = tiles.zeros(shape_of(logits), logits.dtype if same else xp.float32, logits)
    *fields, seed = (xp.reshape(array, (-1,)) for array in (*known, cotangent))
    done = _kernel_blocks.write_gradient(
        seen.spec, seen.view, seen.threads, dense, Partials(*fields), seed, *seen.block, start
    )
    if not done:
        return None
    shape = shape_of(prepared.arrays[0])
    dense = xp.reshape(dense, (*shape[:axis], *shape[axis + 1 :], shape[axis]))
    return _moved(xp, dense, -1, axis)


def _moved(xp: Namespace, array: Array, axis: int, to: int) -> Array:
    """Move an axis of an array."""
    order = list(range(len(shape_of(array))))
    order.insert(to % len(order), order.pop(axis))
    return xp.permute_dims(array, tuple(order))


class _Seen(NamedTuple):
    """The arguments of the kernel. The logits, target and weight have the classes last."""

    spec: LossSpec
    view: View
    threads: int
    block: tuple[Array, Array, Array | None]


def _seen(backend: Backend, prepared: Prepared, start: Any, *others: Array) -> _Seen | None:
    """Return the arguments of the kernel. None if it lacks the loss, or under autodiff."""
    spec, (logits, target, weight, *_) = prepared.spec, prepared.arrays
    given = (logits, target, weight, *others)
    if (
        KERNEL is None
        or not takes(spec, None, True)  # noqa: FBT003
        or not isinstance(start, int)
        or any(a is not None and backend.is_differentiated(a) for a in given)
    ):
        return None
    adapter = backend.linear
    view = _linear.numpy_view if adapter is None else adapter.view
    if view(logits) is None:
        return None
    xp, size = backend.namespace(logits), logits.shape[spec.axis]  # type: ignore[union-attr]

    def flat(array: Array, size: int) -> Array:
        return xp.reshape(_moved(xp, array, spec.axis, -1), (-1, size))

    block = (
        flat(logits, size),
        flat(target, size if spec.soft else 1),
        None if weight is None else flat(weight, size),
    )
    return _Seen(spec, view, 0 if adapter is None else adapter.threads(), block)
