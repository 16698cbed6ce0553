"""Lowering of the kernel's primitives: to XLA's FFI on one CPU, elsewhere to the portable core."""

import contextlib
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir

from xentx._core._spec import encode
from xentx._core.per_row import REAL_FIELDS
from xentx._kernel_engine import INSTALL, KERNEL
from xentx._types import Array
from xentx_jax._primitives import (
    PORTABLE,
    Call,
    by_portable_core,
    is_ones,
    logits_shape,
    loss_and_gradient_p,
    loss_p,
    pullback_p,
    stats_p,
    stats_pullback_p,
    stats_tangent_p,
    tangent_p,
)

TARGET = "xentx"
# In older versions reverse mode and shard_map differ. They use the portable core.
OLDEST_JAX = (0, 7)


# Whether there is a kernel for this JAX.


@functools.cache
def unusable() -> str | None:
    """Return why this JAX cannot call the kernel, or None.

    The FFI version of the kernel must have the same major version as XLA's, and not be newer.
    """
    if not hasattr(KERNEL, "xla_handlers"):
        return f"the CPU kernel was built without its part for JAX (hint: {INSTALL})"
    if jax.__version_info__ < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        return (
            f"JAX {jax.__version__} is older than {oldest}, the oldest that can call the CPU "
            f"kernel (hint: pip install 'jax>={oldest}')"
        )
    built, running = KERNEL.xla_ffi_api_version, _running_api_version()
    if running is None or running[0] != built[0] or running[1] < built[1]:
        has = "no FFI that is known" if running is None else f"version {running[0]}.{running[1]}"
        return (
            f"JAX {jax.__version__} has {has} where the CPU kernel was built for version "
            f"{built[0]}.{built[1]} of XLA's FFI (hint: install another version of JAX, or of "
            "xentx)"
        )
    return None


def _running_api_version() -> tuple[int, int] | None:
    """Version of the FFI that jaxlib was built with. Only its headers contain it."""
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
    """Register the kernel with XLA. Called when a primitive is first lowered for a CPU.

    If the handler were registered before the CPU backend starts, the backend would fail to start if
    the handler is not suitable. After the start, an unsuitable handler raises an error here.
    """
    if unusable():
        return False
    try:
        jax.devices("cpu")
        for name, handler in KERNEL.xla_handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception:  # noqa: BLE001 -- after any error the portable core is used
        return False
    return True


# Running and lowering.


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(primitive: Any, call: Call, *operands: Array) -> list[Array]:
    return primitive.bind(*operands, call=call)


def _run(primitive: Any, *operands: Array, call: Call) -> list[Array]:
    if call.known:
        if primitive is pullback_p and is_ones(operands[-2]):
            return [operands[-1]]
        # Outside of a larger computation, XLA could not overwrite it and would copy it.
        operands, call = operands[:-1], call.knowing(False)  # noqa: FBT003
    config: Any = jax.config
    with jax.disable_jit(disable=False) if config.jax_disable_jit else contextlib.nullcontext():
        return _compiled(primitive, call, *operands)


def _lower(primitive: Any, ctx: mlir.LoweringRuleContext, *operands: Any, call: Call) -> Any:
    if not _is_for_one_device(ctx.module_context) or not _is_registered():
        return _lower_portable[primitive](ctx, *operands, call=call)
    spec = call.kind.spec
    logits = logits_shape(call, ctx.avals_in[0])
    seeds = len(operands) - call.count
    pulls = not call.kind.operation.IS_ROWWISE and seeds > 0
    operation = spec.operation + "_pullback" * pulls
    wanted = [primitive is not pullback_p, primitive is not loss_p]
    given = [*call.given, seeds > 0, call.known]
    if primitive in (stats_p, stats_pullback_p):
        operation = "row_stats"
        wanted = [not seeds, seeds > 0] + [not seeds] * (REAL_FIELDS + 1)
        given += [seeds > 0] * (REAL_FIELDS - 1)
    aliases = {len(operands) - 1: 0} if call.known else None
    if call.overwrites and primitive is loss_and_gradient_p:
        aliases = {0: 1}
    lower = jax.ffi.ffi_lowering(TARGET, operand_output_aliases=aliases)
    return lower(
        ctx,
        *operands,
        options=encode(spec, operation=operation),
        groups=np.int64(1 if call.groups is None else call.groups),
        outer=np.int64(math.prod(logits[: spec.axis])),
        classes=np.int64(logits[spec.axis]),
        inner=np.int64(math.prod(logits[spec.axis + 1 :])),
        given=_bits(given),
        wanted=_bits(wanted),
    )


def _bits(flags: Sequence[bool]) -> np.int64:
    return np.int64(sum(flag << i for i, flag in enumerate(flags)))


def _is_for_one_device(module: mlir.ModuleContext) -> bool:
    """Whether the operands are complete on the device that runs the call.

    XLA would gather sharded arrays for a custom call, but it partitions the portable core. An
    exported module must not call the kernel, which other machines may not have.
    """
    if module.lowering_parameters.for_export:
        return False
    context = module.axis_context
    if isinstance(context, mlir.SPMDAxisContext):  # in a shard_map
        return frozenset(context.mesh.axis_names) == context.manual_axes
    return not isinstance(context, mlir.ShardingContext) or context.num_devices == 1


_lower_portable = {}

for _primitive in PORTABLE:
    _primitive.def_impl(functools.partial(_run, _primitive))
    _lower_portable[_primitive] = mlir.lower_fun(
        functools.partial(by_portable_core, _primitive), multiple_results=True
    )
    mlir.register_lowering(_primitive, _lower_portable[_primitive])
    if _primitive not in (tangent_p, stats_tangent_p):
        mlir.register_lowering(_primitive, functools.partial(_lower, _primitive), platform="cpu")
