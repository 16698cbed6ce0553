"""The native kernel as primitives of JAX, so that every transformation knows what to do with it.

A custom_jvp around jax.ffi would cost most of them: vmap would loop or broadcast, and reverse mode
could not choose what to keep. Four primitives instead, all of one static half, a `Call`:

- ``loss``: the value.
- ``loss_and_gradient``: the value, and the gradient for a cotangent of ones, in one pass. Chosen
  where the loss is reduced and may be transposed, which makes it the better half of a training step.
- ``tangent``: the value's tangent, linear in that of the logits. What is transposed.
- ``pullback``: its transpose, the gradient for a cotangent. Where the gradient for ones is known and
  the cotangent is 1, it is that gradient; else it is computed anew, the cotangent within, since
  scaling would round twice.

On CPUs three of them call the kernel. ``tangent``, every other platform, and whatever XLA is to
partition itself are the portable core. So is each derivative that the kernel lacks: the second, and
those by targets and weights.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from xentx import _native
from xentx._native import Task

Array = Any
Aval = Any
Arrays = tuple[Array | None, ...]
Portable = Callable[[Task, Arrays], Array]

TARGET = "xentx"


@dataclass(frozen=True, slots=True)
class Call:
    """The static half of a primitive. Its operands: the arrays, then a seed, a known gradient.

    Parameters
    ----------
    task
        What to compute.
    portable
        What computes it where the kernel doesn't: a function of a module, since JAX keys on it.
    given
        Which of the five arrays are there.
    groups
        How many problems vmap has made of one; None outside of it.
    grouped
        Which of the arrays that are there have a leading axis for the groups. A seed and a known
        gradient always have it.
    known
        Whether the last operand is the gradient for ones.
    """

    task: Task
    portable: Portable
    given: tuple[bool, ...]
    groups: int | None = None
    grouped: tuple[bool, ...] = ()
    known: bool = False

    @property
    def reduced(self) -> bool:
        """Whether the value is one number."""
        return self.task.operation == "cross_entropy" and self.task.reduction != "none"


loss_p = Primitive("xentx_loss")
loss_and_gradient_p = Primitive("xentx_loss_and_gradient")
tangent_p = Primitive("xentx_tangent")
pullback_p = Primitive("xentx_pullback")
SEEDED = (tangent_p, pullback_p)


def solve(task: Task, arrays: Arrays, portable: Portable) -> Array:
    """Value of the task, differentiable to any order, forward and reverse.

    Parameters
    ----------
    task, arrays
        What `xentx._native.Task` describes.
    portable
        A function of a module, ``portable(task, arrays)``: the same by the portable core.

    Returns
    -------
    array
        The value.
    """
    present = [array for array in arrays if array is not None]
    if not is_usable() or not all(map(_is_plain, present)):
        return portable(task, arrays)
    given = tuple(array is not None for array in arrays)
    call = Call(task, portable, given, grouped=(False,) * len(present))
    (value,) = loss_p.bind(*_vary_alike(present), call=call)
    return value


# Whether there is a kernel for this JAX.


@functools.cache
def is_usable() -> bool:
    """Whether the kernel was built, and for an XLA no newer than the one that runs."""
    kernel = _native.KERNEL
    if kernel is None or not hasattr(jax, "ffi"):
        return False
    major, minor = kernel.xla_ffi_api_version
    running = _running_api_version()
    return running is not None and running[0] == major and running[1] >= minor


def _running_api_version() -> tuple[int, int] | None:
    """Version of the FFI that jaxlib was built with, which it tells in its headers alone."""
    try:
        header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text("utf-8")
    except OSError:
        return None
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR")]
    if not all(found):
        return None
    major, minor = (int(match[1]) for match in found if match)
    return major, minor


@functools.cache
def _is_registered() -> bool:
    """Register the kernel with XLA. Called when something is first lowered for a CPU.

    Before the CPU backend has started, XLA would only note the handler, and not start at all if it
    then turned out not to suit. To a backend that runs, an unsuitable handler is an error here.
    """
    try:
        jax.devices("cpu")
        for name, handler in _native.KERNEL.xla_handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception:  # noqa: BLE001 -- whatever it is, the portable core serves
        return False
    return True


def _is_plain(array: Array) -> bool:
    """Whether the shape is known, and no part of the sharding is in the type."""
    aval = jax.typeof(array)
    explicit = jax.sharding.AxisType.Explicit
    return (
        all(isinstance(n, int) for n in aval.shape) and explicit not in aval.sharding.mesh.axis_types
    )


def _vary_alike(arrays: Sequence[Array]) -> list[Array]:
    """Under shard_map, let all arrays vary over the mesh axes that any of them varies over."""
    varying = [_varying(array) for array in arrays]
    union = frozenset[str]().union(*varying)
    return [
        jax.lax.pcast(array, tuple(union - axes), to="varying") if union - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    ]


def _varying(array: Array) -> frozenset[str]:
    aval = jax.typeof(array)
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma


# The portable core's answer to each primitive.


def _function(call: Call) -> Callable[..., Array]:
    def function(*present: Array) -> Array:
        values = iter(present)
        return call.portable(call.task, tuple(next(values) if g else None for g in call.given))

    return function


def _by_logits(call: Call, arrays: Sequence[Array]) -> Callable[[Array], Array]:
    return lambda logits: _function(call)(logits, *arrays[1:])


def _loss(call: Call, *arrays: Array) -> tuple[Array, ...]:
    return (_function(call)(*arrays),)


def _loss_and_gradient(call: Call, *arrays: Array) -> tuple[Array, ...]:
    value, pull = jax.vjp(_by_logits(call, arrays), arrays[0])
    return value, pull(jnp.ones_like(value))[0]


def _tangent(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seed = operands[: sum(call.given)], operands[sum(call.given)]
    return (jax.jvp(_by_logits(call, arrays), arrays[:1], (seed,))[1],)


def _pullback(call: Call, *operands: Array) -> tuple[Array, ...]:
    arrays, seed = operands[: sum(call.given)], operands[sum(call.given)]
    return jax.vjp(_by_logits(call, arrays), arrays[0])[1](seed)


_PORTABLE = {
    loss_p: _loss,
    loss_and_gradient_p: _loss_and_gradient,
    tangent_p: _tangent,
    pullback_p: _pullback,
}


def _by_portable_core(primitive: Primitive, *operands: Array, call: Call) -> tuple[Array, ...]:
    function = functools.partial(_PORTABLE[primitive], call)
    if call.groups is None:
        return function(*operands)
    everywhere = (True,) * (len(operands) - len(call.grouped))
    axes = tuple(0 if grouped else None for grouped in call.grouped + everywhere)
    return jax.vmap(function, axes, axis_size=call.groups)(*operands)


# Shapes.


def _resized(aval: Aval, shape: tuple[int, ...]) -> Aval:
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec(*(None for _ in shape)))
    return aval.update(shape=shape, weak_type=False, sharding=sharding)


def _avals(primitive: Primitive, *avals: Aval, call: Call) -> list[Aval]:
    full = avals[0].shape[1:] if call.groups is not None and call.grouped[0] else avals[0].shape
    groups = () if call.groups is None else (call.groups,)
    axis = call.task.axis
    if call.reduced:
        shape: tuple[int, ...] = ()
    elif call.task.operation == "log_softmax":
        shape = full
    else:
        shape = full[:axis] + full[axis + 1 :]
    value, gradient = (_resized(avals[0], groups + s) for s in (shape, full))
    if primitive is loss_and_gradient_p:
        return [value, gradient]
    return [gradient] if primitive is pullback_p else [value]


# Derivatives.


def _portable_tangents(
    primitive: Primitive,
    primals: Sequence[Array],
    tangents: Sequence[Any],
    places: Sequence[int],
    call: Call,
) -> Sequence[Any]:
    """Tangents by the operands at `places`, through the portable core; none where none moves."""
    places = [i for i in places if _moves(tangents[i])]
    if not places:
        return []

    def function(*values: Array) -> tuple[Array, ...]:
        operands = list(primals)
        for i, value in zip(places, values, strict=True):
            operands[i] = value
        return _by_portable_core(primitive, *operands, call=call)

    return jax.jvp(function, [primals[i] for i in places], [tangents[i] for i in places])[1]


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, ad.Zero)


def _may_be_transposed(primal: Array, tangent: Array) -> bool:
    """Whether the tangent is another transformation's than the primal: linearize's, not jvp's."""
    return getattr(primal, "_trace", None) is not getattr(tangent, "_trace", None)


def _loss_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    # A batch of losses is pulled back from something else than ones more often than not.
    alone = call.reduced and call.groups is None
    if alone and _moves(tangents[0]) and _may_be_transposed(primals[0], tangents[0]):
        value, *known = loss_and_gradient_p.bind(*primals, call=call)
    else:
        (value,), known = loss_p.bind(*primals, call=call), []
    return [value], [_value_tangent(primals, tangents, known, call)]


def _value_tangent(
    primals: Sequence[Array], tangents: Sequence[Any], known: Sequence[Array], call: Call
) -> Any:
    terms = list(_portable_tangents(loss_p, primals, tangents, range(1, len(primals)), call))
    if _moves(tangents[0]):
        linear = replace(call, known=bool(known))
        terms += tangent_p.bind(*primals, tangents[0], *known, call=linear)
    return functools.reduce(ad.add_tangents, terms)


def _loss_and_gradient_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    value, gradient = loss_and_gradient_p.bind(*primals, call=call)
    everywhere = range(len(primals))
    _, gradient_tangent = _portable_tangents(
        loss_and_gradient_p, primals, tangents, everywhere, call
    )
    value_tangent = _value_tangent(primals, tangents, [gradient], call)
    return [value, gradient], [value_tangent, gradient_tangent]


def _seeded_jvp(
    primitive: Primitive, primals: Sequence[Array], tangents: Sequence[Any], *, call: Call
) -> tuple[list[Array], list[Any]]:
    """Linear in the seed. A known gradient is no variable: it follows from the arrays."""
    at = sum(call.given)
    terms = list(_portable_tangents(primitive, primals, tangents, range(at), call))
    if _moves(tangents[at]):
        operands = [*primals[:at], tangents[at], *primals[at + 1 :]]
        terms += primitive.bind(*operands, call=call)
    return primitive.bind(*primals, call=call), [functools.reduce(ad.add_tangents, terms)]


def _seeded_transpose(
    primitive: Primitive, cotangents: Sequence[Any], *operands: Any, call: Call
) -> list[Any]:
    """The two seeded primitives are each other's transpose."""
    (cotangent,) = cotangents
    at = sum(call.given)
    result: list[Any] = [None] * len(operands)
    if not _moves(cotangent):
        result[at] = ad.Zero(operands[at].aval)
    elif primitive is pullback_p:
        (result[at],) = tangent_p.bind(
            *operands[:at], cotangent, *operands[at + 1 :], call=call
        )
    elif call.known and _is_ones(cotangent):
        result[at] = operands[-1]
    else:
        (result[at],) = pullback_p.bind(
            *operands[:at], cotangent, *operands[at + 1 :], call=call
        )
    return result


def _is_ones(array: Array) -> bool:
    """Whether the values can be seen here, and are 1."""
    literal = getattr(array, "val", None)  # how jit traces the seed of jax.grad
    if isinstance(literal, Literal):
        array = literal.val
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return False
    return bool(np.all(np.asarray(array) == 1))


# vmap.


def _batch(
    primitive: Primitive, operands: Sequence[Array], axes: Sequence[int | None], *, call: Call
) -> tuple[list[Array], list[int]]:
    """Make a group of each problem: the kernel's groups are reduced apart, and bits stay."""
    at = sum(call.given)
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
    batched = replace(call, groups=groups, grouped=tuple(has[:at]), known=known)
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


# Running and lowering.


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(primitive: Primitive, call: Call, *operands: Array) -> list[Array]:
    return primitive.bind(*operands, call=call)


def _run(primitive: Primitive, *operands: Array, call: Call) -> list[Array]:
    if call.known:
        if primitive is pullback_p and _is_ones(operands[-2]):
            return [operands[-1]]
        # Outside of a larger computation XLA could not overwrite it, and would copy it first.
        operands, call = operands[:-1], replace(call, known=False)
    disabled = jax.config.jax_disable_jit
    with jax.disable_jit(disable=False) if disabled else contextlib.nullcontext():
        return _compiled(primitive, call, *operands)


def _lower(primitive: Primitive, ctx: mlir.LoweringRuleContext, *operands: Any, call: Call) -> Any:
    if not _is_for_one_device(ctx.module_context) or not _is_registered():
        return _lower_portable[primitive](ctx, *operands, call=call)
    task = call.task
    logits = ctx.avals_in[0].shape[1 if call.groups is not None and call.grouped[0] else 0 :]
    seeds = len(operands) - sum(call.given)
    if task.operation == "log_softmax":
        operation = "log_softmax_pullback" if seeds else "log_softmax"
        given = [True] * len(operands)
    else:
        operation = task.operation
        given = [*call.given, seeds > 0, call.known]
    wanted = [primitive is not pullback_p, primitive is not loss_p]
    lower = jax.ffi.ffi_lowering(
        TARGET, operand_output_aliases={len(operands) - 1: 0} if call.known else None
    )
    return lower(
        ctx,
        *operands,
        operation=_OPERATIONS[operation],
        reduction=_REDUCTIONS[task.reduction],
        groups=np.int64(1 if call.groups is None else call.groups),
        outer=np.int64(np.prod(logits[: task.axis], dtype=np.int64)),
        classes=np.int64(logits[task.axis]),
        inner=np.int64(np.prod(logits[task.axis + 1 :], dtype=np.int64)),
        given=_bits(given),
        wanted=_bits(wanted),
        soft=task.soft or operation == "log_softmax_pullback",
        ignore_index=np.int64(task.ignore_index),
        label_smoothing=np.float64(task.label_smoothing),
        z_loss=np.float64(task.z_loss),
        logit_softcap=np.float64(task.logit_softcap or 0.0),
        exact=task.exact,
    )


# As in native/kernel.h.
_OPERATIONS = {
    name: np.int64(i)
    for i, name in enumerate(("cross_entropy", "log_softmax", "log_softmax_pullback"))
}
_REDUCTIONS = {
    name: np.int64(i) for i, name in enumerate(("none", "sum", "mean", "weighted_mean"))
}


def _bits(flags: Sequence[bool]) -> np.int64:
    return np.int64(sum(flag << i for i, flag in enumerate(flags)))


def _is_for_one_device(module: mlir.ModuleContext) -> bool:
    """Whether the operands are whole where this runs, and XLA knows that it runs here.

    XLA would gather what is sharded for an opaque call, where it partitions the portable core; and
    an exported module may only call what every reader has.
    """
    if module.lowering_parameters.for_export:
        return False
    context = module.axis_context
    if isinstance(context, mlir.SPMDAxisContext):  # in a shard_map
        return frozenset(context.mesh.axis_names) == context.manual_axes
    return not isinstance(context, mlir.ShardingContext) or context.num_devices == 1


_lower_portable = {}

for _primitive in _PORTABLE:
    _primitive.multiple_results = True
    _primitive.def_impl(functools.partial(_run, _primitive))
    _primitive.def_abstract_eval(functools.partial(_avals, _primitive))
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
    _lower_portable[_primitive] = mlir.lower_fun(
        functools.partial(_by_portable_core, _primitive), multiple_results=True
    )
    mlir.register_lowering(_primitive, _lower_portable[_primitive])
    if _primitive is not tangent_p:
        mlir.register_lowering(
            _primitive, functools.partial(_lower, _primitive), platform="cpu"
        )
ad.primitive_jvps[loss_p] = _loss_jvp
ad.primitive_jvps[loss_and_gradient_p] = _loss_and_gradient_jvp
for _primitive in SEEDED:
    ad.primitive_jvps[_primitive] = functools.partial(_seeded_jvp, _primitive)
    ad.primitive_transposes[_primitive] = functools.partial(_seeded_transpose, _primitive)
