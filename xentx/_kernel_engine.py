"""The CPU kernel, if there is one, and plans for it.

`kernel/kernel.h` describes the kernel. Each adapter's ``_kernel`` passes arrays to it. If it was
not built, or if it would be slow, `KERNEL` is None and the core computes. `NO_KERNEL` is the
reason.

The environment variable ``XENTX_ENGINE`` selects the engine: "portable" is the core, "kernel" is
the kernel or an error, "triton" is PyTorch's engine of that name or an error. By default, the first
engine that supports a call is used.
"""

import importlib
import os
from typing import Any

from xentx._backend import Engine, EngineAdapter
from xentx._core._spec import LossSpec, encode

INSTALL = (
    "XENTX_REQUIRE_KERNEL=1 pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-binary xentx xentx"
)


def _find() -> tuple[Any, str | None]:
    """Import the kernel, or return why it is not used. An explicit request raises an error."""
    engine = os.environ.get("XENTX_ENGINE", "auto")
    if engine not in ("auto", "kernel", "portable", "triton"):
        msg = f"XENTX_ENGINE: got {engine!r}; expected 'kernel', 'portable', 'triton' or nothing"
        raise ValueError(msg)
    if engine in ("portable", "triton"):
        return None, f"XENTX_ENGINE={engine} is set (hint: unset it to use the CPU kernel)"
    try:
        kernel = importlib.import_module("xentx._kernel")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            reason = "this installation of xentx has no CPU kernel"
        else:
            reason = f"the CPU kernel of this installation does not load: {error}"
        if engine == "kernel":
            msg = f"XENTX_ENGINE: got 'kernel', but {reason}"
            raise ImportError(msg) from error
        return None, f"{reason} (hint: with GCC or Clang, {INSTALL})"
    # An exponential has five fused multiply-adds. Without this instruction the core is faster.
    if kernel.is_fast() or engine == "kernel":
        return kernel, None
    isa = os.environ.get("XENTX_ISA")
    limit = "this CPU has" if isa is None else f"XENTX_ISA={isa} leaves"
    return None, (
        f"{limit} no fused multiply-add, without which the portable core is faster "
        "(hint: XENTX_ENGINE=kernel uses the CPU kernel all the same)"
    )


KERNEL: Any
NO_KERNEL: str | None
KERNEL, NO_KERNEL = _find()
# A plan returns this, without computing, if it cannot read an array in its layout.
UNREADABLE = -2


# The name in XENTX_ENGINE and `xentx.backend_of`.
NAME = "kernel"


def is_wanted(engine: str) -> bool | None:
    """Whether XENTX_ENGINE requests this engine. None if it requests none."""
    asked = os.environ.get("XENTX_ENGINE", "auto")
    return None if asked == "auto" else asked == engine


def engines(adapter: EngineAdapter) -> tuple[Engine, ...]:
    """Return the kernel, with the module of an adapter, as the engines of a backend."""
    return () if KERNEL is None else (Engine(NAME, adapter, takes, KERNEL.instruction_set()),)


def takes(spec: LossSpec, target: str | None, has_float64: bool) -> bool:  # noqa: FBT001
    """Whether the kernel supports a loss, for `xentx._backend.Engine`."""
    # Indices that do not fit the kernel's integers must be detected as out of range.
    wraps = target == "uint64" or (target in ("uint32", "int64") and not has_float64)
    # The kernel does not support options that are arrays.
    known = spec.operation in ("cross_entropy", "log_softmax", "nll_loss")
    return known and not wraps and not spec.operands


Strides = tuple[int, int, int, int]
Layout = tuple[str, Strides] | None


def plan(
    spec: LossSpec,
    shape: tuple[int, int, int],
    logits: Layout,
    *,
    groups: int = 1,
    operation: str | None = None,
    target: Layout = None,
    weight: Layout = None,
    sample_weight: Layout = None,
    normalizer: Layout = None,
    state: Layout = None,
    cotangent: Layout = None,
    first_class: int = 0,
    all_classes: int = 0,
) -> Any:
    """Make a plan, which is called with addresses or NumPy arrays: see `kernel/module.cpp`.

    Parameters
    ----------
    spec
        The loss.
    shape
        The sizes (outer, classes, inner).
    groups
        The number of independent problems of that shape.
    logits, target, weight, sample_weight, normalizer, state, cotangent
        Each array's dtype, and its strides in elements along (group, outer, classes, inner).
    operation
        The operation if it is not that of the spec: "log_softmax_pullback", with a cotangent in
        the shape of the logits, or "block_state" and "block_gradient" for a block of the classes.
    first_class, all_classes
        The first class of a block, and the number of classes of all blocks.
    """
    outer, classes, inner = shape
    return KERNEL.plan(
        options=encode(spec, operation=operation or spec.operation),
        groups=groups,
        outer=outer,
        classes=classes,
        inner=inner,
        logits=logits,
        target=target,
        weight=weight,
        sample_weight=sample_weight,
        normalizer=normalizer,
        state=state,
        cotangent=cotangent,
        first_class=first_class,
        all_classes=all_classes,
    )
