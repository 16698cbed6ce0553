"""Count the bytes that losses of sharded classes send, time a step, and model many devices.

    python benchmarks/scale.py

1. Collectives and bytes for each row. Those of xentx and of PyTorch's `loss_parallel` are counted
   on four gloo ranks. Those of Megatron-LM and TransformerEngine are computed from their algorithms
   in `megatron/core/tensor_parallel/cross_entropy.py`,
   `megatron/core/fusions/fused_cross_entropy.py` and
   `transformer_engine/pytorch/triton/cross_entropy.py`.
2. The time of a step, forward and backward, on four ranks of this machine. xentx and
   `loss_parallel` are timed in turns.
3. A model of up to 10^4 devices and 10^6 classes. It is computed from the constants below, not
   measured.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import machine

RANKS, ROWS, CLASSES, ROUNDS = 4, 512, 4096, 30

# Constants of the model: rows of a step, and the network and memory of a GPU in a cluster.
MODEL_ROWS = 8192
LATENCY = 5e-6  # seconds from one device to another
BANDWIDTH = 50e9  # bytes per second of a device's link
MEMORY = 3e12  # bytes per second of a device's memory
FLOAT = 4  # bytes of a logit


@dataclass(frozen=True)
class Method:
    """A loss, and what it sends.

    Parameters
    ----------
    name
        Name of the loss.
    reduced
        Bytes for each row of each all-reduce.
    gathered
        Bytes for each row that each rank gives to an all-gather.
    exchanged
        Bytes for each row that each rank gives to an all-to-all. An all-gather of the sums follows.
    """

    name: str
    reduced: tuple[int, ...]
    gathered: tuple[float, ...] = ()
    exchanged: tuple[int, ...] = ()

    def row(self) -> tuple[str, str, str]:
        """Name, collectives and bytes for each row."""
        kinds = [f"all-reduce of {n}" for n in self.reduced]
        kinds += [f"all-gather of {n} x ranks" for n in self.gathered]
        kinds += [f"all-to-all of {n}, all-gather of {n} / ranks" for n in self.exchanged]
        total = f"{self.gathered[0]} x ranks" if self.gathered else str(sum(self.reduced))
        if self.exchanged:
            total = f"{sum(self.reduced + self.exchanged)} + {sum(self.exchanged)} / ranks"
        return self.name, ", ".join(kinds), total

    def seconds(self, ranks: int) -> float:
        """Modelled time: a tree of messages, and the bytes on a device's link."""
        steps, share = math.ceil(math.log2(ranks)), (ranks - 1) / ranks
        reduced = (
            2 * steps * LATENCY + 2 * share * n * MODEL_ROWS / BANDWIDTH
            for n in self.reduced + self.exchanged
        )
        gathered = (
            steps * LATENCY + (ranks - 1) * n * MODEL_ROWS / BANDWIDTH for n in self.gathered
        )
        return sum(reduced) + sum(gathered)


MEGATRON = Method("Megatron-LM, vocab_parallel_cross_entropy", (4, 4, 4))
FUSED = Method("Megatron-LM, fused_vocab_parallel_cross_entropy", (4, 8))
TRANSFORMER_ENGINE = Method("TransformerEngine, parallel_cross_entropy", (), (12,))
STATES = Method("partials that are gathered, then combine", (), (48,))


# ---- Functions that run on each rank.


def losses(rank: int) -> dict[str, Callable[[Any], Any]]:
    """Losses by name, as functions of the logits of this rank or of a DTensor."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch.distributed.tensor.parallel import loss_parallel

    from xentx_torch import parallel

    torch.manual_seed(0)
    target = torch.randint(CLASSES, (ROWS,))
    size = CLASSES // RANKS
    weight = torch.rand(size) + 0.5

    def of(**options: Any) -> Callable[[Any], Any]:
        place = {"classes": CLASSES, "start": rank * size}
        return lambda x: parallel.cross_entropy(x.to_local(), target, **place, **options)

    def peer(x: Any) -> Any:
        with loss_parallel():
            return F.cross_entropy(x, target)

    return {
        "xentx, class indices": of(),
        "xentx, label smoothing or class weights": of(label_smoothing=0.1),
        "xentx, both, mean": of(label_smoothing=0.1, weight=weight),
        "xentx, class indices, deterministic": of(deterministic=True),
        "PyTorch, loss_parallel": peer,
    }


def step(loss: Callable[[Any], Any], logits: Any) -> None:
    """Run forward and backward."""
    from contextlib import nullcontext

    from torch.distributed.tensor.parallel import loss_parallel

    logits.grad = None
    value = loss(logits)
    with loss_parallel() if hasattr(value, "placements") else nullcontext():
        value.backward()


def sent(loss: Callable[[Any], Any], logits: Any) -> dict[str, list[int]]:
    """Bytes that a rank gives to each collective of a step, by its kind."""
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode

    # The index of the argument with the rank's input.
    places = {"allreduce_": 0, "alltoall_base_": 1, "_allgather_base_": 1}
    found: dict[str, list[int]] = {kind: [] for kind in places}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            if any(issubclass(kind, DTensor) for kind in types):
                return NotImplemented
            name = str(function)
            if "c10d" in name and any(
                kind in name for kind in ("reduce", "gather", "scatter", "all")
            ):
                kind = name.split(".")[1].replace("all_reduce", "allreduce").rstrip("_") + "_"
                if kind not in places:
                    raise NotImplementedError(name)
                given = args[places[kind]]
                (array,) = given if isinstance(given, list) else (given,)
                found[kind].append(array.numel() * array.element_size())
            return function(*args, **kwargs or {})

    with Counting():
        step(loss, logits)
    return found


def on_rank(rank: int, store: str) -> None:
    """Count and time on one of the ranks. The first rank prints the results."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(1)
    mesh = init_device_mesh("cpu", (RANKS,))
    logits = distribute_tensor(torch.randn(ROWS, CLASSES), mesh, [Shard(1)]).requires_grad_()
    named = losses(rank)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(ROUNDS + 3):
        for name, loss in named.items():
            dist.barrier()
            began = time.perf_counter()
            step(loss, logits)
            dist.barrier()
            seconds[name].append(time.perf_counter() - began)
    found = {
        name: {"sent": sent(loss, logits), "seconds": statistics.median(seconds[name][3:])}
        for name, loss in named.items()
    }
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))  # noqa: T201 -- `measured` reads it


def measured() -> dict[str, Any]:
    """Run four ranks, and return the results of the first one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(Path(folder) / "store")],
                env=env,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(RANKS)
        ]
        printed = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit("a rank failed")
    return json.loads(printed[0])


# ---- Output.


def main() -> None:
    """Print the three tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = measured()
    console = Console(width=None if sys.stdout.isatty() else 120)

    # Messages whose size does not depend on the rows, such as a flag, are not counted.
    counted = [
        Method(
            name,
            tuple(n // ROWS for n in one["sent"]["allreduce_"] if n >= ROWS),
            exchanged=tuple(n // ROWS for n in one["sent"]["alltoall_base_"]),
        )
        for name, one in found.items()
    ]
    table = Table("loss", "collectives, forward and backward", "bytes a row", box=box.SIMPLE)
    for method in counted:
        table.add_row(*method.row())
    table.add_section()
    for method in (MEGATRON, FUSED, TRANSFORMER_ENGINE, STATES):
        table.add_row(*method.row())
    console.print("Counted, and below the line by their algorithms")
    console.print(table)

    table = Table("loss", "milliseconds", "of loss_parallel's", box=box.SIMPLE)
    peer = found["PyTorch, loss_parallel"]["seconds"]
    for name, one in found.items():
        table.add_row(name, f"{one['seconds'] * 1e3:.2f}", f"{one['seconds'] / peer:.2f}")
    about = machine()
    console.print(
        f"Median time of a step at ({ROWS}, {CLASSES}) float32 on {RANKS} gloo ranks, PyTorch "
        f"{about['versions'].get('torch')}, {about['processors']} processors"
    )
    console.print(table)

    methods = {
        "xentx": counted[0],
        "Megatron-LM": MEGATRON,
        "fused": FUSED,
        "Transformer Engine": TRANSFORMER_ENGINE,
        "gathered partials": STATES,
    }
    names = (*methods, "gathered logits")
    table = Table("classes", "ranks", "own logits", *names, box=box.SIMPLE)
    for classes in (10**4, 10**5, 10**6):
        for ranks in (4, 64, 1024, 10**4):
            local = 3 * MODEL_ROWS * classes * FLOAT / ranks / MEMORY
            logits = Method("", (), (classes * FLOAT / ranks,))
            sending = (method.seconds(ranks) for method in (*methods.values(), logits))
            cells = (f"{seconds * 1e3:.3g}" for seconds in (local, *sending))
            table.add_row(f"{classes:,}", f"{ranks:,}", *cells)
        table.add_section()
    console.print(
        f"Model: milliseconds of {MODEL_ROWS} rows in float32. Own logits: read twice and written "
        f"once at {MEMORY / 1e12:.0f} TB/s. Collectives: {LATENCY * 1e6:.0f} us from device to "
        f"device, {BANDWIDTH / 1e9:.0f} GB/s"
    )
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:]:
        on_rank(int(sys.argv[1]), sys.argv[2])
    else:
        main()
