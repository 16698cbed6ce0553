"""The loss of a causal language model for transformers.Trainer."""

from collections.abc import Mapping
from typing import Any

import torch

from xentx._bound import Functions
from xentx_torch._backend import BACKEND
from xentx_torch.functional import widened

__all__ = ["compute_loss_func"]

Array = torch.Tensor

_FUNCTIONS = Functions(BACKEND)


def compute_loss_func(
    outputs: Any, labels: Array, num_items_in_batch: float | Array | None = None, **options: Any
) -> Array:
    r"""Next-token loss for ``transformers.Trainer(compute_loss_func=...)``.

    .. math:: \ell = \frac{1}{n} \sum_t \mathrm{cross\_entropy}(x_t, \text{label}_{t+1})

    Parameters
    ----------
    outputs : mapping or object
        The output of the model, with ``logits`` in shape ``(..., tokens, classes)``.
    labels : torch.Tensor
        Class indices in shape ``(..., tokens)``. Tokens with the label -100 are ignored.
    num_items_in_batch : float or torch.Tensor, optional
        The divisor :math:`n`: the number of labels that are not ignored, in all batches of an
        optimizer step. The sum of the losses of these batches is then the mean over the step. The
        default is the number in this batch.
    **options
        Options of `xentx.cross_entropy`, such as ``z_loss``. Use functools.partial to pass them.

    Returns
    -------
    torch.Tensor
        The 0-d loss, in float32, or in float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentx.cross_entropy`.

    Notes
    -----
    float16 and bfloat16 logits are converted to float32, as in transformers. Otherwise each loss
    would be rounded to bfloat16, and the sum of rounded losses would not be the mean.

    Examples
    --------
    >>> import torch
    >>> import xentx_torch
    >>> outputs = {"logits": torch.zeros(1, 3, 4)}
    >>> xentx_torch.compute_loss_func(outputs, torch.tensor([[0, 1, -100]]))
    tensor(1.3863)
    """
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
    # The last token has no target. The logits are not sliced, because that would copy them and
    # their gradient.
    ignored = options.get("ignore_index", -100)
    target = torch.nn.functional.pad(labels, (0, 1), value=ignored)[..., 1:].to(logits.device)
    if isinstance(num_items_in_batch, torch.Tensor):
        # With several devices, the Trainer passes an array with one number.
        num_items_in_batch = num_items_in_batch.to(logits.device).squeeze()
    return _FUNCTIONS.cross_entropy(
        widened(logits), target, axis=-1, normalizer=num_items_in_batch, **options
    )
