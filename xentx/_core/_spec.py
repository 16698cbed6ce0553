"""What an operation knows before it sees a value: hashable, so that a compiler can key on it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Precision:
    """In which dtypes an operation works.

    Parameters
    ----------
    compute
        The dtype of every elementwise step: float64 for float64 logits, float32 for all others.
    accumulate
        The dtype of sums: float64 where the framework has it.
    recover
        Whether the rounding error of ``max - x`` is worth recovering. It is not where the logits
        are narrower than `compute`, since the one final rounding hides it.
    compensate
        Whether sums over rows must carry their rounding error along, `accumulate` being no wider
        than float32.
    """

    compute: Any
    accumulate: Any
    recover: bool
    compensate: bool


@dataclass(frozen=True, slots=True)
class Spec:
    """The static half of a problem: everything but the arrays.

    Parameters
    ----------
    axis, classes
        Which axis holds the classes, and how many there are.
    precision
        The dtypes to compute in.
    soft
        Whether the target is a distribution over the classes; else it is a class index.
    checked
        Whether every class index has been seen to be in range.
    ignore_index
        The class index of the rows to ignore; None where there is no such row.
    label_smoothing, z_loss, logit_softcap
        As in `xentx.cross_entropy`.
    device
        Where an array that is made of nothing must lie to meet the others; None where the framework
        sees to that.
    """

    axis: int
    classes: int
    precision: Precision
    soft: bool = False
    checked: bool = False
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_softcap: float | None = None
    device: Any = None
