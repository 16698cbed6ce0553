"""The static half of a problem as the native kernel sees it, and whether there is a kernel.

`native/kernel.h` says what the kernel computes. Each adapter's ``_native`` hands it arrays. Where the
kernel was not built, or the machine is none that it is fast on, `KERNEL` is None and everything runs
on the portable core.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """What to compute, but for the arrays: hashable, so that a compiler can key on it.

    The arrays that go with it are always ``(logits, target, weight, sample_weight, normalizer)``,
    None where there is none: weight of shape ``(classes,)``, sample_weight in the shape of the
    logits without the class axis, normalizer 0-d, these three of the compute dtype; class indices
    of int32 or int64 in the shape of the rows, or probabilities in the shape of the logits.

    Parameters
    ----------
    operation
        "cross_entropy" or "log_softmax". The latter has logits and no other array.
    axis
        Axis of the classes, not negative.
    soft
        Whether the target holds probabilities.
    reduction
        "none", "sum", "mean" or "weighted_mean".
    ignore_index, label_smoothing, z_loss, logit_softcap
        As in `xentx.cross_entropy`.
    exact
        Whether to compute in float64 inside, whatever the logits.
    """

    operation: str
    axis: int
    soft: bool = False
    reduction: str = "none"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_softcap: float | None = None
    exact: bool = False
