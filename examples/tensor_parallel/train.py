"""Train a model whose last layer is distributed over the ranks.

``torchrun --nproc-per-node 4 examples/tensor_parallel/train.py`` prints the loss of each step. The
losses do not depend on the number of ranks.
"""

import torch
import torch.distributed as dist

from xentx_torch import parallel

TOKENS, FEATURES, VOCABULARY, STEPS = 64, 16, 50, 20


def own_part(head: torch.Tensor) -> torch.Tensor:
    """Return the classes of this rank. The numbers of classes differ by at most one."""
    return head.tensor_split(dist.get_world_size())[dist.get_rank()]


def main() -> None:
    """Train, and print the losses."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same arrays on every rank
    inputs, target = torch.randn(TOKENS, FEATURES), torch.randint(VOCABULARY, (TOKENS,))
    body = torch.nn.Linear(FEATURES, FEATURES)
    head = torch.nn.Parameter(own_part(torch.randn(VOCABULARY, FEATURES) / 4).clone())
    optimizer = torch.optim.SGD([*body.parameters(), head], lr=1.0)
    for _ in range(STEPS):
        hidden = torch.tanh(body(inputs))
        loss = parallel.linear_cross_entropy(hidden, head, target, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"{loss.item():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
