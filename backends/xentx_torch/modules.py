"""Drop-in replacements for losses of torch.nn.

Each is a subclass of PyTorch's class and overrides ``forward``. Its arguments, state, copies and
pickles are those of PyTorch.
"""

from typing import Any

import torch

from xentx_torch import functional

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "LogSoftmax", "NLLLoss"]

Array = torch.Tensor


class LogSoftmax(torch.nn.LogSoftmax):
    """Drop-in replacement for torch.nn.LogSoftmax.

    Parameters
    ----------
    dim : int, optional
        The axis that holds the classes. If it is not given, PyTorch's default is used, with
        PyTorch's warning.

    Examples
    --------
    >>> import torch
    >>> import xentx_torch
    >>> xentx_torch.LogSoftmax(dim=1)(torch.zeros(1, 2))
    tensor([[-0.6931, -0.6931]])
    """

    def forward(self, input: Array) -> Array:
        """Log-probabilities of `input`."""
        return functional.log_softmax(input, self.dim, _stacklevel=5)


class NLLLoss(torch.nn.NLLLoss):
    """Drop-in replacement for torch.nn.NLLLoss.

    Parameters
    ----------
    weight : torch.Tensor, optional
        A weight for each class.
    size_average : bool, optional
        Deprecated, as in PyTorch. Together with `reduce` it selects the reduction.
    ignore_index : int, default: -100
        Rows with this target are ignored.
    reduce : bool, optional
        Deprecated, as in PyTorch.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `xentx.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import xentx_torch
    >>> log_probs = torch.tensor([[-0.5, -1.0], [-2.0, -0.25]])
    >>> xentx_torch.NLLLoss(reduction="sum")(log_probs, torch.tensor([0, 1]))
    tensor(0.7500)
    """

    def forward(self, input: Array, target: Array) -> Array:
        """Loss of `input` in shape ``(C,)``, ``(N, C)`` or ``(N, C, ...)``."""
        return functional.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Drop-in replacement for torch.nn.CrossEntropyLoss.

    Parameters
    ----------
    weight : torch.Tensor, optional
        A weight for each class.
    size_average : bool, optional
        Deprecated, as in PyTorch. Together with `reduce` it selects the reduction.
    ignore_index : int, default: -100
        Rows with this target are ignored. For class indices only.
    reduce : bool, optional
        Deprecated, as in PyTorch.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `xentx.cross_entropy`.
    label_smoothing : float, default: 0.0
        The part of the target that is distributed evenly over all classes, from 0 to 1.
    z_loss, logit_softcap : float, optional
        As in `xentx.cross_entropy`. PyTorch does not have these options.

    Examples
    --------
    >>> import torch
    >>> import xentx_torch
    >>> loss = xentx_torch.CrossEntropyLoss(label_smoothing=0.1)
    >>> isinstance(loss, torch.nn.CrossEntropyLoss)
    True
    >>> loss(torch.zeros(2, 4), torch.tensor([3, -100]))
    tensor(1.3863)
    """

    def __init__(
        self,
        weight: Array | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.logit_softcap = logit_softcap

    def forward(self, input: Array, target: Array) -> Array:
        """Loss of `input` in shape ``(C,)``, ``(N, C)`` or ``(N, C, ...)``."""
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            logit_softcap=self.logit_softcap,
        )


class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
    """Drop-in replacement for torch.nn.LinearCrossEntropyLoss.

    The loss is `xentx_torch.functional.linear_cross_entropy`.

    Parameters
    ----------
    in_features : int
        Number of features of the layer's input.
    num_classes : int
        Number of classes.
    z_loss, logit_softcap : float, optional
        As in `xentx.cross_entropy`. PyTorch does not have these options.
    **options
        Options of torch.nn.LinearCrossEntropyLoss: ``out_features``, ``bias``, ``device``,
        ``dtype``, ``reduction``, ``weight``, ``ignore_index``, ``label_smoothing`` and ``options``.

    Examples
    --------
    >>> import torch
    >>> import xentx_torch
    >>> loss = xentx_torch.LinearCrossEntropyLoss(3, 5)
    >>> loss(torch.zeros(2, 3), torch.tensor([0, 4])).detach()
    tensor(1.6094)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **options)
        self.z_loss = z_loss
        self.logit_softcap = logit_softcap

    def forward(self, input: Array, target: Array) -> Array:
        """Loss of the layer's `input` in shape ``(F,)`` or ``(N, F)``."""
        shape = (self.num_classes, *self.out_features)
        return functional.linear_cross_entropy(
            input,
            self.linear.weight.unflatten(0, shape),
            target,
            linear_bias=None if self.linear.bias is None else self.linear.bias.unflatten(0, shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            z_loss=self.z_loss,
            logit_softcap=self.logit_softcap,
        )
