"""DTensors on four processes: any layout of the logits and the target gives the dense result."""

import os
import subprocess
import sys

import pytest

RANKS = 4

PROGRAM = """
import os, sys
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
import xentx

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=4)
line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
rng = np.random.default_rng(0)
x = torch.tensor(rng.normal(size=(6, 8)), dtype=torch.float32)
hard = torch.tensor([0, 7, 3, -100, 5, 2])
soft = torch.tensor(rng.dirichlet(np.ones(8), 6), dtype=torch.float32)
weight = torch.tensor(rng.uniform(0.5, 2, 8), dtype=torch.float32)
rows_weight = torch.tensor(rng.uniform(0.5, 2, 6), dtype=torch.float32)

LAYOUTS = {
    "replicated": (line, [Replicate()], [Replicate()]),
    "rows": (line, [Shard(0)], [Shard(0)]),
    "classes": (line, [Shard(1)], [Replicate()]),
    "rows beside a whole target": (line, [Shard(0)], None),
    "rows and classes": (grid, [Shard(0), Shard(1)], [Shard(0), Replicate()]),
}
OPTIONS = [
    {},
    {"reduction": "none"},
    {"weight": weight, "label_smoothing": 0.1, "reduction": "weighted_mean"},
    {"sample_weight": rows_weight, "z_loss": 0.1, "logit_softcap": 5.0, "reduction": "sum"},
]

def solved(function, logits, target, options):
    leaf = logits.detach().requires_grad_()
    value = function(leaf, target, **options)
    value.sum().backward()
    return [a.full_tensor() if isinstance(a, DTensor) else a for a in (value, leaf.grad)]

for name, (mesh, of_logits, of_target) in LAYOUTS.items():
    for options in OPTIONS:
        for target in (hard, soft):
            spread = [*of_logits] if target is soft and of_target else of_target
            there = target if spread is None else distribute_tensor(target, mesh, spread)
            spread_x = distribute_tensor(x, mesh, of_logits)
            found = solved(xentx.cross_entropy, spread_x, there, options)
            for a, b in zip(found, solved(xentx.cross_entropy, x, target, options), strict=True):
                torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
    logits = distribute_tensor(x, mesh, of_logits)
    there = hard if of_target is None else distribute_tensor(hard, mesh, of_target)
    for options in ({}, {"reduction": "none"}, {"weight": weight}):
        for target in (hard, soft):
            spread = [*of_logits] if target is soft and of_target else of_target
            to = target if spread is None else distribute_tensor(target, mesh, spread)
            found = solved(xentx.nll_loss, logits, to, options)
            for a, b in zip(found, solved(xentx.nll_loss, x, target, options), strict=True):
                torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
    stats = xentx.per_row(logits, there)
    for a, b in zip(stats, xentx.per_row(x, hard), strict=True):
        torch.testing.assert_close(a.full_tensor(), b, rtol=2e-6, atol=1e-6)
    head = torch.tensor(np.random.default_rng(1).normal(size=(5, 8)), dtype=torch.float32)
    linear = [
        solved(lambda h, t: xentx.linear_cross_entropy(h, head, t), hidden, t, {})
        for hidden, t in ((logits, there % 5), (x, hard % 5))
    ]
    for a, b in zip(*linear, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
    print(name, flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_layouts_of_dtensors(frameworks, tmp_path):
    if "torch" not in frameworks:
        pytest.skip("not asked for")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-W",
                "ignore",
                "-c",
                PROGRAM,
                str(rank),
                str(tmp_path / "store"),
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    for rank, (printed, error) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, error[-4000:]
        assert len(printed.splitlines()) == 5
