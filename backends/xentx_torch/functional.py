"""Drop-in replacements for losses of torch.nn.functional.

They have its signatures, class axis and autocast. The functions here only translate the arguments
to those of `xentx_torch.cross_entropy` and the other losses, which validate and compute.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from xentx._bound import Functions
from xentx_torch._backend import BACKEND

__all__ = ["cross_entropy", "linear_cross_entropy", "log_softmax", "nll_loss"]

Array = torch.Tensor

_FUNCTIONS = Functions(BACKEND)


def log_softmax(
    input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Array:
    r"""Drop-in replacement for torch.nn.functional.log_softmax.

    .. math:: y_k = x_k - \log \sum_j e^{x_j}

    Parameters
    ----------
    input : torch.Tensor
        Logits in any shape, of dtype float16, bfloat16, float32 or float64. With `dtype`, any
        dtype that can be converted to it.
    dim : int, optional
        The axis that holds the classes. If it is not given, PyTorch's default is used, with
        PyTorch's warning.
    _stacklevel : int, default: 3
        The stack level of that warning.
    dtype : torch.dtype, optional
        If given, `input` is converted to it first.

    Returns
    -------
    torch.Tensor
        Log-probabilities, in the shape and dtype of the logits.

    Raises
    ------
    TypeError
        If the dtype of the logits is not supported.
    ValueError
        If there is no axis `dim`, or if it has length 0.

    See Also
    --------
    xentx.log_softmax : The same function; describes all rules.

    Examples
    --------
    >>> import torch
    >>> from xentx_torch import functional as F
    >>> F.log_softmax(torch.tensor([[2, 2]]), dim=1, dtype=torch.float32)
    tensor([[-0.6931, -0.6931]])
    """
    if isinstance(input, torch.fx.Proxy):
        return _recorded(log_softmax, locals())
    if dim is None:
        dim = _implicit_axis(input, _stacklevel)
    return _FUNCTIONS.log_softmax(input if dtype is None else input.to(dtype), axis=dim)


def nll_loss(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Array:
    r"""Drop-in replacement for torch.nn.functional.nll_loss.

    .. math:: \ell = -w_t \, y_t

    Parameters
    ----------
    input : torch.Tensor
        Log-probabilities in shape ``(C,)``, ``(N, C)`` or ``(N, C, ...)``, of dtype float16,
        bfloat16, float32 or float64.
    target : torch.Tensor
        Class indices of any integer dtype, in the shape of `input` without its class axis; or
        class probabilities in the shape of `input`.
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

    Returns
    -------
    torch.Tensor
        The loss, in the dtype of `input`: 0-d, or one for each row with ``reduction="none"``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentx.nll_loss`.

    See Also
    --------
    xentx.nll_loss : The same function; describes all rules.

    Notes
    -----
    Under torch.autocast, float16 and bfloat16 are converted to float32 first, as in PyTorch.

    Examples
    --------
    >>> import torch
    >>> from xentx_torch import functional as F
    >>> log_probs = F.log_softmax(torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]]), dim=1)
    >>> F.nll_loss(log_probs, torch.tensor([1, 2]))
    tensor(0.3906)
    """
    if isinstance(input, torch.fx.Proxy):
        return _recorded(nll_loss, locals())
    return _FUNCTIONS.nll_loss(
        _autocast(input),
        target,
        axis=_class_axis(input),
        weight=weight,
        ignore_index=ignore_index,
        reduction=_reduce(size_average, reduce, reduction),
    )


def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float | Array = 0.0,
    *,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
) -> Array:
    r"""Drop-in replacement for torch.nn.functional.cross_entropy.

    .. math:: \ell = \sum_k q_k \left( \log \sum_j e^{x_j} - x_k \right) + z \, \mathrm{lse}^2

    `xentx.cross_entropy` defines the distribution :math:`q`.

    Parameters
    ----------
    input : torch.Tensor
        Logits in shape ``(C,)``, ``(N, C)`` or ``(N, C, ...)``, of dtype float16, bfloat16, float32
        or float64.
    target : torch.Tensor
        Class indices of any integer dtype, in the shape of `input` without its class axis; or
        class probabilities of any float dtype, in the shape of `input`.
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
    label_smoothing : float or array, default: 0.0
        The part of the target that is distributed evenly over all classes, from 0 to 1.
    z_loss, logit_softcap : float or array, optional
        As in `xentx.cross_entropy`. PyTorch does not have these options.

    Returns
    -------
    torch.Tensor
        The loss, in the dtype of `input`: 0-d, or one for each row with ``reduction="none"``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentx.cross_entropy`.

    See Also
    --------
    xentx.cross_entropy : Describes all rules, has more options, and has the classes on the last
        axis by default.

    Notes
    -----
    Under torch.autocast, float16 and bfloat16 are converted to float32 first, as in PyTorch.

    Examples
    --------
    >>> import torch
    >>> from xentx_torch import functional as F
    >>> pixels = torch.zeros(2, 4, 3, 3)  # 4 classes on axis 1
    >>> F.cross_entropy(pixels, torch.zeros(2, 3, 3, dtype=torch.int32))
    tensor(1.3863)
    """
    if isinstance(input, torch.fx.Proxy):
        return _recorded(cross_entropy, locals())
    return _FUNCTIONS.cross_entropy(
        _autocast(input),
        target,
        axis=_class_axis(input),
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        reduction=_reduce(size_average, reduce, reduction),
    )


def linear_cross_entropy(
    input: Array,
    linear_weight: Array,
    target: Array,
    *,
    linear_bias: Array | None = None,
    weight: Array | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float | Array = 0.0,
    options: torch.nn.LinearCrossEntropyOptions | None = None,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
) -> Array:
    r"""Drop-in replacement for torch.nn.functional.linear_cross_entropy.

    .. math:: \ell = \mathrm{cross\_entropy}(H W^\top + b, \text{target})

    Parameters
    ----------
    input : torch.Tensor
        The input of the last layer in shape ``(F,)`` or ``(N, F)``, of dtype float16, bfloat16,
        float32 or float64.
    linear_weight : torch.Tensor
        The weights of the layer in shape ``(C, F)``; or ``(C, ..., F)``, one layer for each
        position.
    target : torch.Tensor
        Class indices of any integer dtype in shape ``()``, ``(N,)`` or ``(N, ...)``; or class
        probabilities in the shape of the logits, ``(C,)``, ``(N, C)`` or ``(N, C, ...)``.
    linear_bias : torch.Tensor, optional
        The bias of the layer, in the shape of `linear_weight` without the last axis.
    weight : torch.Tensor, optional
        A weight for each class.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `xentx.cross_entropy`.
    ignore_index : int, optional
        Rows with this target are ignored. The default is -100. For class indices only.
    label_smoothing : float or array, default: 0.0
        The part of the target that is distributed evenly over all classes, from 0 to 1.
    options : torch.nn.LinearCrossEntropyOptions, optional
        ``batch_chunk_size`` is the number of rows that are computed at a time. The other fields are
        ignored. In PyTorch they select a narrower dtype for sums and the lifetime of gradients.
        xentx always accumulates in float32 or wider and keeps the gradients.
    z_loss, logit_softcap : float or array, optional
        As in `xentx.cross_entropy`. PyTorch does not have these options.

    Returns
    -------
    torch.Tensor
        The loss: 0-d, or one for each row with ``reduction="none"``. Its dtype is float32, or
        float64 if one of the operands is float64.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentx.linear_cross_entropy`.

    See Also
    --------
    xentx.linear_cross_entropy : Describes all rules and has more options.

    Notes
    -----
    The logits are not all stored, with or without `options`. Exception: with one layer for each
    position all logits are stored, as in PyTorch.

    Examples
    --------
    >>> import torch
    >>> from xentx_torch import functional as F
    >>> hidden, head = torch.ones(2, 3), torch.zeros(5, 3)
    >>> F.linear_cross_entropy(hidden, head, torch.tensor([0, 4]))
    tensor(1.6094)
    """
    if isinstance(input, torch.fx.Proxy):
        return _recorded(linear_cross_entropy, locals())
    ignored = -100 if ignore_index is None else ignore_index
    more: dict[str, Any] = {
        "weight": weight,
        "ignore_index": ignored,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "logit_softcap": logit_softcap,
        "reduction": reduction,
    }
    positions = () if linear_weight.is_nested else linear_weight.shape[1:-1]
    if not positions:
        if options is not None and options.batch_chunk_size is not None:
            more["chunk"] = options.batch_chunk_size
        return _FUNCTIONS.linear_cross_entropy(
            input, linear_weight, target, bias=linear_bias, **more
        )
    if input.dim() != 2:  # noqa: PLR2004
        msg = (
            f"input: got shape {tuple(input.shape)} for linear_weight of shape "
            f"{tuple(linear_weight.shape)}; expected (N, {linear_weight.shape[-1]})"
        )
        raise ValueError(msg)
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = torch.nn.functional.linear(input, linear_weight.flatten(0, -2), bias)
    logits = logits.unflatten(-1, linear_weight.shape[:-1])
    return _FUNCTIONS.cross_entropy(widened(logits), target, axis=1, **more)


def widened(array: Array) -> Array:
    """Convert float16 and bfloat16 to float32."""
    return array.to(torch.promote_types(array.dtype, torch.float32))


def _recorded(function: Callable[..., Array], arguments: dict[str, Any]) -> Any:
    """Make a call a node of the graph that torch.fx traces."""
    tracer = arguments["input"].tracer
    return tracer.create_proxy("call_function", function, (), dict(arguments))


def _implicit_axis(input: Array, stacklevel: int) -> int:
    """Choose PyTorch's default axis for log_softmax, with its warning."""
    warnings.warn(
        "Implicit dimension choice for log_softmax has been deprecated. "
        "Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if input.dim() in (0, 1, 3) else 1


def _class_axis(input: Array) -> int:
    return min(1, input.dim() - 1)


def _autocast(input: Array) -> Array:
    narrow = input.dtype in (torch.float16, torch.bfloat16)
    return widened(input) if narrow and torch.is_autocast_enabled(input.device.type) else input


def _reduce(size_average: bool | None, reduce: bool | None, reduction: str) -> Any:
    if size_average is None and reduce is None:
        return reduction
    return torch.nn.NLLLoss(None, size_average, reduce=reduce).reduction  # which warns
