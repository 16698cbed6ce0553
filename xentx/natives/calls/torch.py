"""PyTorch's losses: its functions and modules under one calling convention."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

Array = torch.Tensor


def _class_axis(logits: Array) -> int:
    return 0 if logits.ndim == 1 else 1


def cross_entropy_module(logits: Array, target: Array, **options: Any) -> Array:
    """Call nn.CrossEntropyLoss."""
    loss: Array = nn.CrossEntropyLoss(**options)(logits, target)
    return loss


def log_softmax_nll(logits: Array, target: Array, **options: Any) -> Array:
    """Call F.log_softmax and F.nll_loss."""
    return functional.nll_loss(
        functional.log_softmax(logits, dim=_class_axis(logits)), target, **options
    )


def log_softmax_nll_modules(logits: Array, target: Array, **options: Any) -> Array:
    """Call nn.LogSoftmax and nn.NLLLoss."""
    log_softmax = nn.LogSoftmax(dim=_class_axis(logits))
    loss: Array = nn.NLLLoss(**options)(log_softmax(logits), target)
    return loss


def linear_cross_entropy(logits: Array, target: Array, **options: Any) -> Array:
    """Call F.linear_cross_entropy with an identity for a head, so that hidden equals logits."""
    head = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return functional.linear_cross_entropy(logits, head, target, **options)


def linear_cross_entropy_chunked(logits: Array, target: Array, **options: Any) -> Array:
    """Do the same with LinearCrossEntropyOptions()."""
    chunked = nn.LinearCrossEntropyOptions()
    return linear_cross_entropy(logits, target, options=chunked, **options)
