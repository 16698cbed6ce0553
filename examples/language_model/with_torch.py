"""The model in PyTorch."""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812

import xentx
from text import RATE, Batch, Weights

Tensor = torch.Tensor


def native(hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """PyTorch's own loss, which stores all logits."""
    return F.cross_entropy(F.linear(hidden, head, bias), target)


def ours(hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The same loss with xentx, which stores the logits of 256 rows."""
    return xentx.linear_cross_entropy(hidden, head, target, bias=bias, chunk=256)


def train(start: Weights, batches: Iterable[Batch], loss: Callable[..., Tensor]) -> Iterator[float]:
    """Run gradient descent, and yield the loss of each step."""
    weights = Weights(*(torch.from_numpy(array).requires_grad_() for array in start))
    for batch in batches:
        context, target = map(torch.from_numpy, batch)
        embedded = F.embedding(context, weights.embedding).flatten(1)
        hidden = torch.tanh(embedded @ weights.inner)
        value = loss(hidden, weights.head, weights.bias, target)
        gradients = torch.autograd.grad(value, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(RATE * gradient)
        yield value.item()
