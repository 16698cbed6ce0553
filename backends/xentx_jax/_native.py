"""The native kernel as primitives of JAX, so that every transformation knows what to do with it.

A custom_jvp around jax.ffi would cost most of them: vmap would loop or broadcast, and reverse mode
could not choose what to keep. Four primitives instead, all of one static half, a `Call`:

- ``loss``: the value.
- ``loss_and_gradient``: the value, and the gradient for a cotangent of ones, in one pass: for a
  reduced loss that is to be transposed, which is the better half of a training step.
- ``tangent``: the value's tangent, linear in that of the logits. What is transposed.
- ``pullback``: its transpose, the gradient for a cotangent. Where the gradient for ones is known
  and the cotangent is 1, it is that gradient; else it is computed anew, the cotangent within,
  since scaling would round twice.

On CPUs three of them call the kernel. ``tangent``, every other platform, and whatever XLA is to
partition itself are the portable core. So is each derivative that the kernel lacks: the second, and
those by targets and weights.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from xentx import _evaluate
from xentx._calls import Kind
from xentx._core._spec import encode
from xentx._native import INSTALL, KERNEL
from xentx._types import Array

Aval = Any
Arrays = tuple[Array | None, ...]

TARGET = "xentx"
# Before it, reverse mode and shard_map went other ways. Older ones have the portable core.
OLDEST_JAX = (0, 7)


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """The static half of a primitive. Its operands: the arrays, then a seed, a known gradient.

    Made by `_call`, which makes one of each: JAX looks at identity, at no cost in every call.

    Parameters
    ----------
    kind
        What to compute.
    given
        Which of the five arrays are there.
    groups
        How many problems vmap has made of one; None outside of it.
    grouped
        Which of the arrays that are there have a leading axis for the groups. A seed and a known
        gradient always have it.
    known
        Whether the last operand is the gradient for ones.
    overwrites
        Whether ``loss_and_gradient`` puts the gradient where the logits were. Where somebody else
        needs them XLA copies them first, so that this pays only for what nobody does.
    """

    kind: Kind
    given: tuple[bool, ...]
    groups: int | None
    grouped: tuple[bool, ...]
    known: bool
    overwrites: bool = False

    @property
    def count(self) -> int:
        """How many arrays there are: where the seed is."""
        return len(self.grouped)

    @property
    def reduced(self) -> bool:
        """Whether the value is one number."""
        return self.kind.is_reduced

    def knowing(self, known: bool) -> "Call":  # noqa: FBT001
        """Return the same with or without a known gradient."""
        return _call(self.kind, self.given, self.groups, self.grouped, known)


@functools.cache
def _call(
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


def declines(array: Array) -> str | None:
    """Say why the kernel computes no loss of `array`; None where it lies on one CPU."""
    aval = jax.typeof(array)
    if not _is_plain(aval):
        if all(isinstance(size, int) for size in aval.shape):
            return "the array's sharding is explicit; the native kernel takes arrays of one CPU"
        return f"the array has the symbolic shape {aval.shape}; the native kernel takes known sizes"
    if isinstance(array, jax.core.Tracer):
        return None  # on CPUs, as will be seen when it is compiled
    platforms = sorted(device.platform for device in array.devices())
    if platforms == ["cpu"]:
        return None
    where = f"{len(platforms)} devices" if platforms[1:] else f"a device of {platforms[0]}"
    return f"the array is on {where}; the native kernel takes arrays of one CPU"


def solve(kind: Kind, arrays: Arrays) -> Array | None:
    """Value, which JAX can differentiate and batch; None for what the kernel can't be given."""
    present = _present(kind, arrays)
    if present is None:
        return None
    return loss_p.bind(*present, call=_call_for(kind, arrays))[0]


def solve_with_gradient(
    kind: Kind, arrays: Arrays, cotangent: Array | None, *, overwrite: bool = False
) -> tuple[Array, Array] | None:
    """Value and gradient in the same pass over the logits; None as `solve` has it."""
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
        call = kind.plans[given, overwrite] = _call(kind, given, None, grouped, False, overwrite)  # noqa: FBT003
    return call


def _present(kind: Kind, arrays: Arrays) -> list[Array] | None:
    """Return the arrays that there are; None where they are not for the kernel."""
    present = [array for array in arrays if array is not None]
    if unusable() or not all(_is_plain(jax.typeof(array)) for array in present):
        return None
    if _is_out_of_range(kind, arrays[1]):
        return None
    return _vary_alike(present)


def _is_out_of_range(kind: Kind, target: Array | None) -> bool:
    """Whether a class index is seen to be wrong, of which the core will say more."""
    if target is None or kind.spec.soft or isinstance(target, jax.core.Tracer):
        return False
    if not target.is_fully_addressable:
        return False
    values = np.asarray(target)
    wrong = values.view(f"u{values.itemsize}") >= kind.spec.classes
    ignored = kind.spec.ignore_index
    if ignored is not None:
        wrong &= values != ignored
    return bool(wrong.any())


# Whether there is a kernel for this JAX.


@functools.cache
def unusable() -> str | None:
    """Say why the kernel can't be called by this JAX; None where it can.

    XLA runs what was built for an FFI of its major version that is no newer than its own.
    """
    if not hasattr(KERNEL, "xla_handlers"):
        return f"the native kernel was built without its part for JAX (hint: {INSTALL})"
    if jax.__version_info__ < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        return (
            f"JAX {jax.__version__} is older than {oldest}, the oldest that can call the native "
            f"kernel (hint: pip install 'jax>={oldest}')"
        )
    built, running = KERNEL.xla_ffi_api_version, _running_api_version()
    if running is None or running[0] != built[0] or running[1] < built[1]:
        has = "no FFI that is known" if running is None else f"version {running[0]}.{running[1]}"
        return (
            f"JAX {jax.__version__} has {has} where the native kernel was built for version "
            f"{built[0]}.{built[1]} of XLA's FFI (hint: install another version of JAX, or of "
            "xentx)"
        )
    return None


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
    if unusable():
        return False
    try:
        jax.devices("cpu")
        for name, handler in KERNEL.xla_handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception:  # noqa: BLE001 -- whatever it is, the portable core serves
        return False
    return True


def _is_plain(aval: Aval) -> bool:
    """Whether the shape is known, and no part of the sharding is in the type."""
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


# Both go by other names in older versions.
def _varying(aval: Aval) -> frozenset[str]:
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma


def _vary(array: Array, axes: tuple[str, ...]) -> Array:
    lax: Any = jax.lax
    return lax.pcast(array, axes, to="varying") if hasattr(lax, "pcast") else lax.pvary(array, axes)


# The portable core's answer to each primitive.


def _function(call: Call) -> Callable[..., Array]:
    def function(*present: Array) -> Array:
        values = iter(present)
        arrays = tuple(next(values) if given else None for given in call.given)
        return _evaluate.portable(call.kind, arrays)

    return function


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


_PORTABLE = {
    loss_p: _loss,
    loss_and_gradient_p: _loss_and_gradient,
    tangent_p: _tangent,
    pullback_p: _pullback,
}


def _by_portable_core(primitive: Any, *operands: Array, call: Call) -> tuple[Array, ...]:
    function = functools.partial(_PORTABLE[primitive], call)
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


def _logits_shape(call: Call, logits: Aval) -> tuple[int, ...]:
    return logits.shape[1:] if call.groups is not None and call.grouped[0] else logits.shape


def _avals(primitive: Any, *avals: Aval, call: Call) -> list[Aval]:
    full = _logits_shape(call, avals[0])
    groups = () if call.groups is None else (call.groups,)
    value, gradient = (
        _resized(avals[0], groups + shape) for shape in (_value_shape(call, full), full)
    )
    if primitive is loss_and_gradient_p:
        return [value, gradient]
    return [gradient] if primitive is pullback_p else [value]


# Derivatives.


def _portable_tangents(
    primitive: Any,
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
    elif call.known and _is_ones(cotangent):
        result[at] = operands[-1]
    else:
        (result[at],) = pullback_p.bind(*operands[:at], cotangent, *operands[at + 1 :], call=call)
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
    batched = _call(call.kind, call.given, groups, tuple(has[:at]), known)
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
def _compiled(primitive: Any, call: Call, *operands: Array) -> list[Array]:
    return primitive.bind(*operands, call=call)


def _run(primitive: Any, *operands: Array, call: Call) -> list[Array]:
    if call.known:
        if primitive is pullback_p and _is_ones(operands[-2]):
            return [operands[-1]]
        # Outside of a larger computation XLA could not overwrite it, and would copy it first.
        operands, call = operands[:-1], call.knowing(False)  # noqa: FBT003
    config: Any = jax.config
    with jax.disable_jit(disable=False) if config.jax_disable_jit else contextlib.nullcontext():
        return _compiled(primitive, call, *operands)


def _lower(primitive: Any, ctx: mlir.LoweringRuleContext, *operands: Any, call: Call) -> Any:
    if not _is_for_one_device(ctx.module_context) or not _is_registered():
        return _lower_portable[primitive](ctx, *operands, call=call)
    spec = call.kind.spec
    logits = _logits_shape(call, ctx.avals_in[0])
    seeds = len(operands) - call.count
    pulls = not call.kind.operation.IS_ROWWISE and seeds > 0
    wanted = [primitive is not pullback_p, primitive is not loss_p]
    aliases = {len(operands) - 1: 0} if call.known else None
    if call.overwrites and primitive is loss_and_gradient_p:
        aliases = {0: 1}
    lower = jax.ffi.ffi_lowering(TARGET, operand_output_aliases=aliases)
    return lower(
        ctx,
        *operands,
        options=encode(spec, operation=spec.operation + "_pullback" * pulls),
        groups=np.int64(1 if call.groups is None else call.groups),
        outer=np.int64(math.prod(logits[: spec.axis])),
        classes=np.int64(logits[spec.axis]),
        inner=np.int64(math.prod(logits[spec.axis + 1 :])),
        given=_bits([*call.given, seeds > 0, call.known]),
        wanted=_bits(wanted),
    )


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
        mlir.register_lowering(_primitive, functools.partial(_lower, _primitive), platform="cpu")
ad.primitive_jvps[loss_p] = _loss_jvp
ad.primitive_jvps[loss_and_gradient_p] = _loss_and_gradient_jvp
for _primitive in (tangent_p, pullback_p):
    ad.primitive_jvps[_primitive] = functools.partial(_seeded_jvp, _primitive)
    ad.primitive_transposes[_primitive] = functools.partial(_seeded_transpose, _primitive)
