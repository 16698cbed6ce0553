"""Count the bytes that the portable core and its peers read and write in memory, for each logit.

    python benchmarks/bytes_moved.py [--targets cpu h100 tpu inductor] [--json FILE]

XLA programs are compiled but not run. JAX's compile-only topologies allow compiling for an H100 and
a TPU v5e without these devices. On an accelerator, moving the bytes takes most of the time of a
loss, so the count is a benchmark without noise. `_hlo.py` counts the bytes. For torch.compile, the
program counts the arrays with the size of the logits in inductor's code for CPUs, and its loops
over classes. This code runs once, on few rows.

One pass over float32 logits reads 4 bytes for each logit. A loss needs one pass for the maximum and
one for the sum. The gradient needs a third pass, which also writes 4 bytes.

The compilers for H100 and TPU are in wheels: `pip install --group accelerators`.
`docs/generate_performance.py` makes tables of `benchmarks/bytes_moved.json`.
"""

import argparse
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _hlo import Program
from _measure import apart, machine

SHAPE = (2048, 50257)
INDUCTOR_SHAPE = (64, 50257)
DTYPES = ("float32", "bfloat16")
TARGETS = {
    "cpu": "this CPU",
    "h100": "an H100",
    "tpu": "a TPU v5e",
    "inductor": "torch.compile on CPUs",
}
PLUGINS = {"cpu": "jax", "h100": "jax_plugins.xla_cuda12", "tpu": "libtpu", "inductor": "torch"}
PASSES = ("forward", "forward + backward")

SMOOTHING, Z_LOSS, CAP, TEMPERATURE = 0.1, 1e-4, 30.0, 0.7

# The GpuTargetConfigProto of XLA's compiler.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""

# The arguments are logits, class indices, probabilities and class weights.
Loss = Callable[[Any, Any, Any, Any], Any]
Losses = dict[str, Loss]


def losses_of_xentx() -> Losses:
    """Every loss and option, for all frameworks."""
    import xentx

    def cross_entropy(**options: float) -> Loss:
        return lambda x, t, q, w: xentx.cross_entropy(x, t, **options)

    return {
        "cross_entropy": cross_entropy(),
        "weight": lambda x, t, q, w: xentx.cross_entropy(x, t, weight=w),
        "label_smoothing": cross_entropy(label_smoothing=SMOOTHING),
        "soft targets": lambda x, t, q, w: xentx.cross_entropy(x, q),
        "z_loss": cross_entropy(z_loss=Z_LOSS),
        "logit_softcap": cross_entropy(logit_softcap=CAP),
        "temperature": cross_entropy(temperature=TEMPERATURE),
        "log_softmax": lambda x, t, q, w: xentx.log_softmax(x),
        "nll_loss": lambda x, t, q, w: xentx.nll_loss(x, t),
    }


def losses_of_jax() -> dict[str, Losses]:
    """Losses of Optax, and losses written with jax.nn.log_softmax."""
    import jax
    import jax.numpy as jnp
    import optax

    def picked(log_probs: Any, t: Any) -> Any:
        return -jnp.take_along_axis(log_probs, t[:, None], axis=-1)[:, 0]

    def losses(rows: Callable[..., Any], soft_rows: Callable[..., Any]) -> Losses:
        def smoothed(x: Any, t: Any, q: Any, w: Any) -> Any:
            one_hot = jax.nn.one_hot(t, x.shape[-1], dtype=x.dtype)
            return soft_rows(x, optax.smooth_labels(one_hot, SMOOTHING)).mean()

        def with_z_loss(x: Any, t: Any, q: Any, w: Any) -> Any:
            return (rows(x, t) + Z_LOSS * jax.nn.logsumexp(x, axis=-1) ** 2).mean()

        return {
            "cross_entropy": lambda x, t, q, w: rows(x, t).mean(),
            "weight": lambda x, t, q, w: (w[t] * rows(x, t)).sum() / w[t].sum(),
            "label_smoothing": smoothed,
            "soft targets": lambda x, t, q, w: soft_rows(x, q).mean(),
            "z_loss": with_z_loss,
            "logit_softcap": lambda x, t, q, w: rows(CAP * jnp.tanh(x / CAP), t).mean(),
            "temperature": lambda x, t, q, w: rows(x / TEMPERATURE, t).mean(),
        }

    log_softmax = jax.nn.log_softmax
    return {
        "xentx": losses_of_xentx(),
        "optax": losses(
            optax.softmax_cross_entropy_with_integer_labels, optax.softmax_cross_entropy
        ),
        "jax.nn": {
            **losses(
                lambda x, t: picked(log_softmax(x), t),
                lambda x, q: -(q * log_softmax(x)).sum(-1),
            ),
            "log_softmax": lambda x, t, q, w: log_softmax(x),
            "nll_loss": lambda x, t, q, w: picked(x, t).mean(),
        },
    }


def losses_of_torch() -> dict[str, Losses]:
    """Losses of torch.nn.functional."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    def with_z_loss(x: Any, t: Any, q: Any, w: Any) -> Any:
        rows = F.cross_entropy(x, t, reduction="none")
        return (rows + Z_LOSS * torch.logsumexp(x, -1) ** 2).mean()

    return {
        "xentx": losses_of_xentx(),
        "torch": {
            "cross_entropy": lambda x, t, q, w: F.cross_entropy(x, t),
            "weight": lambda x, t, q, w: F.cross_entropy(x, t, w),
            "label_smoothing": lambda x, t, q, w: F.cross_entropy(x, t, label_smoothing=SMOOTHING),
            "soft targets": lambda x, t, q, w: F.cross_entropy(x, q),
            "z_loss": with_z_loss,
            "logit_softcap": lambda x, t, q, w: F.cross_entropy(CAP * torch.tanh(x / CAP), t),
            "temperature": lambda x, t, q, w: F.cross_entropy(x / TEMPERATURE, t),
            "log_softmax": lambda x, t, q, w: F.log_softmax(x, -1),
            "nll_loss": lambda x, t, q, w: F.nll_loss(x, t),
        },
    }


def device_of(target: str) -> Any:
    """Return the device to compile for. It need not be present."""
    import jax
    from jax.experimental.topologies import get_topology_desc

    if target == "cpu":
        return jax.devices("cpu")[0]
    if target == "tpu":
        return get_topology_desc("v5e:2x2", "tpu").devices[0]
    one = "1x1x1"
    return get_topology_desc(one, "cuda", target_config=H100, topology=one).devices[0]


def count_xla(target: str, dtype: str, libraries: Sequence[str]) -> dict[str, Any]:
    """Bytes for each logit, for each loss and library."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    sharding = SingleDeviceSharding(device_of(target))
    logits = SHAPE[0] * SHAPE[1]

    def array(shape: tuple[int, ...], dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    x, t, q, w = array(SHAPE), array(SHAPE[:1], jnp.int32), array(SHAPE), array(SHAPE[1:])

    def count(loss: Loss, *, backward: bool) -> dict[str, float]:
        def both(x: Any, t: Any, q: Any, w: Any, cotangent: Any) -> Any:
            value, pull = jax.vjp(lambda x: loss(x, t, q, w), x)
            return value, pull(cotangent)[0]

        # The cotangent of a scalar is 1, which compilers know. That of an array is one more
        # argument.
        def alone(x: Any, t: Any, q: Any, w: Any) -> Any:
            return both(x, t, q, w, jnp.ones((), x.dtype))

        arguments = (x, t, q, w)
        function = loss
        if backward:
            value = jax.eval_shape(loss, *arguments)
            function = both if value.shape else alone
            arguments += (array(value.shape, value.dtype),) if value.shape else ()
        compiled = jax.jit(function).lower(*arguments).compile()
        read, written = Program(compiled.as_text()).moved()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        found = {"read": read, "written": written, "temporary": temporary}
        return {name: round(number / logits, 2) for name, number in found.items()}

    return {
        library: {
            name: {how: count(loss, backward=how != "forward") for how in PASSES}
            for name, loss in losses.items()
        }
        for library, losses in losses_of_jax().items()
        if library in libraries
    }


def count_inductor(dtype: str, libraries: Sequence[str]) -> dict[str, Any]:
    """Arrays of the logits' size, and loops over classes or all logits, in inductor's code."""
    import torch
    from torch._inductor.utils import run_and_get_code

    rows, classes = INDUCTOR_SHAPE
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    x = torch.randn(INDUCTOR_SHAPE, dtype=dtype)
    t = torch.randint(classes, (rows,))
    q, w = torch.softmax(x, -1), torch.rand(classes, dtype=dtype)
    array = re.compile(rf"empty_strided_cpu\(\({rows}, {classes}\)")
    sizes = f"(?:{classes}|{rows * classes})"
    loop = re.compile(rf"for\(int64_t x\d+=.*?<static_cast<int64_t>\({sizes}L")

    def count(loss: Loss, *, backward: bool) -> dict[str, int]:
        torch.compiler.reset()
        compiled = torch.compile(loss, dynamic=False)
        leaf = x.clone().requires_grad_(backward)

        def call() -> None:
            value = compiled(leaf, t, q, w)
            if backward:
                value.backward(torch.ones_like(value))

        _, codes = run_and_get_code(call)
        text = "\n".join(codes)
        return {"arrays": len(array.findall(text)), "loops": len(loop.findall(text))}

    return {
        library: {
            name: {how: count(loss, backward=how != "forward") for how in PASSES}
            for name, loss in losses.items()
        }
        for library, losses in losses_of_torch().items()
        if library in libraries
    }


def measure(target: str, dtype: str, libraries: Sequence[str]) -> dict[str, Any]:
    """Counts for a target, in this process."""
    if target == "inductor":
        return count_inductor(dtype, libraries)
    return count_xla(target, dtype, libraries)


def cell(found: dict[str, float] | None) -> str:
    """Bytes read and written, or the numbers of arrays and loops of inductor."""
    if found is None:
        return ""
    if "arrays" in found:
        return f"{found['arrays']}, {found['loops']}"
    return f"{found['read']:.1f} + {found['written']:.1f}"


def headings(counts: dict[str, Any]) -> tuple[str, ...]:
    """Columns of the table of a target and dtype."""
    return ("", *(f"{library}, {how}" for how in PASSES for library in counts))


def rows(counts: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of a target and dtype."""
    for name in counts["xentx"]:
        libraries = counts.values()
        yield (name, *(cell(found.get(name, {}).get(how)) for how in PASSES for found in libraries))


def is_missing(target: str) -> bool:
    """Return whether the compiler of a target is missing, and print how to install it."""
    module = PLUGINS[target]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent package is missing
        found = None
    if found is None:
        group = "accelerators" if target in {"h100", "tpu"} else module
        hint = f"hint: pip install --group {group}"
        print(f"{target} left out: {module} is not installed ({hint})", file=sys.stderr)  # noqa: T201
    return found is None


def main() -> None:
    """Run a process for each target and dtype, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--libraries", nargs="+", default=["xentx", "optax", "jax.nn", "torch"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = measure(options.targets[0], options.dtypes[0], options.libraries)
        print(json.dumps(found))  # noqa: T201 -- `apart` reads it
        return

    os.environ |= {"XENTX_ENGINE": "portable", "JAX_PLATFORMS": "cpu"}
    # with a cache, no code would be generated
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not query Google Cloud for the type of TPU
    targets = [target for target in options.targets if not is_missing(target)]
    fixed = ("--worker", "--libraries", *options.libraries)
    report = {
        "machine": machine(),
        "shape": SHAPE,
        "targets": {
            target: {
                dtype: apart(__file__, *fixed, "--targets", target, "--dtypes", dtype)
                for dtype in options.dtypes
            }
            for target in targets
        },
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")

    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for target, found in report["targets"].items():
        unit = "arrays, loops" if target == "inductor" else "bytes a logit, read + written"
        for dtype, counts in found.items():
            title = f"{TARGETS[target]}, {dtype}: {unit}"
            table = Table(*headings(counts), title=title, box=box.SIMPLE)
            for row in rows(counts):
                table.add_row(*row)
            console.print(table)


if __name__ == "__main__":
    main()
