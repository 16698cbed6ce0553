"""The CPU kernel, if there is one, and plans for it.

`kernel/kernel.h` says what the kernel computes. Each adapter's ``_kernel`` hands it arrays. Where
it was not built, or where it would be slow, `KERNEL` is None and everything runs on the core;
`NO_KERNEL` says why.

The environment variable ``XENTX_ENGINE`` chooses: "portable" for the core, "kernel" for the kernel
or an error, "triton" for PyTorch's engine of that name or an error, nothing for each engine where
it is.
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
    """Import the kernel if it is there and wanted, or say why not. An explicit request raises."""
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
    # Without fused multiply-add, of which there are five in an exponential, the core is quicker.
    if kernel.is_fast() or engine == "kernel":
        return kernel, None
    isa = os.environ.get("XENTX_ISA")
    limit = "this CPU has" if isa is None else f"XENTX_ISA={isa} leaves"
    return None, (
        f"{limit} no fused multiply-add, without which the portable core is quicker "
        "(hint: XENTX_ENGINE=kernel uses the CPU kernel all the same)"
    )


KERNEL: Any
NO_KERNEL: str | None
KERNEL, NO_KERNEL = _find()
# What a plan returns, having done nothing, where it can't read an array as it lies.
UNREADABLE = -2


# As XENTX_ENGINE and `xentx.backend_of` name it.
NAME = "kernel"


def is_wanted(engine: str) -> bool | None:
    """Whether XENTX_ENGINE asks for an engine; None where it asks for nothing."""
    asked = os.environ.get("XENTX_ENGINE", "auto")
    return None if asked == "auto" else asked == engine


def engines(adapter: EngineAdapter) -> tuple[Engine, ...]:
    """Return the kernel, reached by an adapter's module, as the engines of a backend."""
    return () if KERNEL is None else (Engine(NAME, adapter, takes, KERNEL.instruction_set()),)


def takes(spec: LossSpec, target: str | None, has_float64: bool) -> bool:  # noqa: FBT001
    """Whether the kernel has a loss, as `xentx._backend.Engine` asks."""
    # An index too large for the type that the kernel reads must be seen to be out of range.
    wraps = target == "uint64" or (target in ("uint32", "int64") and not has_float64)
    # Options that are arrays it can't read.
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
    """Make what is then called with addresses or NumPy arrays, as `kernel/module.cpp` says.

    Parameters
    ----------
    spec
        What to compute.
    shape
        How many (outer, classes, inner) there are.
    groups
        And how many independent problems of that shape.
    logits, target, weight, sample_weight, normalizer, state, cotangent
        Each array's dtype, and its strides in elements along (group, outer, classes, inner).
    operation
        What to compute, where that is not the spec's own: "log_softmax_pullback", which
        takes a cotangent in the shape of the logits, or what is done
        with a block of the classes, "block_state" and "block_gradient".
    first_class, all_classes
        Where a block begins, and how many classes there are beside its own.
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
