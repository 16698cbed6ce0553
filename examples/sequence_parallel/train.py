"""Train a model whose tokens and last-layer classes are distributed over the ranks.

``torchrun --nproc-per-node 4 examples/sequence_parallel/train.py`` prints the loss of each step.
The losses do not depend on the number of ranks, which must divide the number of tokens.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from xentx_torch import parallel

TOKENS, FEATURES, VOCABULARY, STEPS = 64, 16, 50, 20


def all_tokens(hidden: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """Gather the tokens of all ranks. The pullback takes this rank's tokens without a sum."""
    return DTensor.from_local(hidden, mesh, [Shard(0)]).full_tensor()


def main() -> None:
    """Train, and print the losses."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    torch.manual_seed(0)  # the same arrays on every rank
    inputs, target = torch.randn(TOKENS, FEATURES), torch.randint(VOCABULARY, (TOKENS,))
    body = torch.nn.Linear(FEATURES, FEATURES)
    head = torch.randn(VOCABULARY, FEATURES) / 4
    head = torch.nn.Parameter(head.tensor_split(ranks)[rank].clone())
    own_inputs = inputs.chunk(ranks)[rank]
    optimizer = torch.optim.SGD([*body.parameters(), head], lr=1.0)
    for _ in range(STEPS):
        hidden = all_tokens(torch.tanh(body(own_inputs)), mesh)
        loss = parallel.linear_cross_entropy(hidden, head, target, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        for parameter in body.parameters():
            dist.all_reduce(parameter.grad)  # sum the gradients of all ranks' tokens
        optimizer.step()
        if rank == 0:
            print(f"{loss.item():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
