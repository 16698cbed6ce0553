"""Train on sequences that are distributed over the ranks, in micro-batches.

``torchrun --nproc-per-node 4 examples/data_parallel/train.py`` prints the loss of each step. The
losses do not depend on the number of ranks, although each rank has a different number of tokens.
"""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import xentx

SEQUENCES, TOKENS, FEATURES, VOCABULARY, STEPS = 16, 8, 16, 20, 20
IGNORED = -100

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def backward(model: DistributedDataParallel, batches: Batches) -> torch.Tensor:
    """Differentiate the mean over the tokens of all micro-batches of all ranks, and return it."""
    items = torch.stack([(target != IGNORED).sum() for _, target in batches]).sum()
    dist.all_reduce(items)
    # DistributedDataParallel averages the gradients of the ranks, but their sum is needed.
    normalizer = items / dist.get_world_size()
    total = torch.zeros(())
    for left, (inputs, target) in zip(reversed(range(len(batches))), batches, strict=True):
        with model.no_sync() if left else nullcontext():  # reduce gradients once for each step
            loss = xentx.cross_entropy(model(inputs), target, axis=-1, normalizer=normalizer)
            loss.backward()
        total += loss.detach()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def main() -> None:
    """Train, and print the losses."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same arrays on every rank
    inputs = torch.randn(SEQUENCES, TOKENS, FEATURES)
    target = torch.randint(VOCABULARY, (SEQUENCES, TOKENS))
    lengths = torch.randint(1, TOKENS + 1, (SEQUENCES, 1))
    target[torch.arange(TOKENS) >= lengths] = IGNORED  # padding
    layers = (torch.nn.Linear(FEATURES, 64), torch.nn.Tanh(), torch.nn.Linear(64, VOCABULARY))
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    own = slice(dist.get_rank(), None, dist.get_world_size())
    batches = list(zip(inputs[own].chunk(2), target[own].chunk(2), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = backward(model, batches)
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"{loss.item():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
