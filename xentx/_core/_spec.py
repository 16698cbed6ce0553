"""What a loss computes, without its arrays: hashable, so that a compiler can key on it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xentx._types import Array, Namespace

# Stands in a LossSpec for an option whose value is an array: `bound` puts the array in its place.
OPERAND = "operand"


@dataclass(frozen=True, slots=True)
class Option:
    """An option that is a number, or an array of no dimensions.

    Parameters
    ----------
    default
        The value with which it changes nothing.
    is_positive
        Whether it must be above 0; else it may be 0.
    is_share
        Whether it is 1 at the most; else any finite number.
    """

    default: float | None
    is_positive: bool = False
    is_share: bool = False

    def holds(self, value: Any) -> Any:
        """Whether a number is in the range of the option; of an array, an array."""
        above = value > 0.0 if self.is_positive else value >= 0.0
        return above & (value <= 1.0 if self.is_share else value < math.inf)

    def range_of(self, name: str) -> str:
        """Return the range in words: ``"0 <= name <= 1"``."""
        above, below = "<" if self.is_positive else "<=", "<= 1" if self.is_share else "< inf"
        return f"0 {above} {name} {below}"


# In the order in which those that are arrays follow an operation's other arrays.
OPTIONS = {
    "label_smoothing": Option(0.0, is_share=True),
    "z_loss": Option(0.0),
    "logit_softcap": Option(None, is_positive=True),
    "temperature": Option(1.0, is_positive=True),
}


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
class LossSpec:
    """All of a loss but its arrays.

    Parameters
    ----------
    operation
        Name of the module of `xentx._core` that computes it.
    axis, classes
        Which axis holds the classes, not negative, and how many there are. The number is None where
        a compiler doesn't know it: `bound` puts an array in its place.
    precision
        The dtypes to compute in.
    soft
        Whether the target is a distribution over the classes; else it is a class index.
    reduction
        "none", "sum", "mean" or "weighted_mean".
    ignore_index
        The class index of the rows to ignore; None where there is no such row.
    label_smoothing, z_loss, logit_softcap, temperature
        As in `xentx.cross_entropy`: a number, or OPERAND for an array.
    beta
        Which divergence `kl_divergence` computes.
    exact
        Whether to compute in float64, whatever the dtype of the logits.
    checked
        Whether every class index has been seen to be in range.
    device
        Where an array that is made of nothing must lie to meet the others; None where the framework
        sees to that.
    final
        Whether the expression of the value is not differentiated, since the operation's own rules
        are. Then it need not have the right derivatives at infinity.
    """

    operation: str
    axis: int
    classes: Any
    precision: Precision
    soft: bool = False
    reduction: str = "none"
    ignore_index: int | None = None
    label_smoothing: Any = 0.0
    z_loss: Any = 0.0
    logit_softcap: Any = None
    temperature: Any = 1.0
    beta: float = 0.0
    exact: bool = False
    checked: bool = False
    device: Any = None
    final: bool = False

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the options whose values are arrays."""
        return tuple(name for name in OPTIONS if getattr(self, name) is OPERAND)


# What is said of a loss where it leaves Python: in operators, and for the CPU kernel. All else
# follows from the arrays.
_WRITTEN: dict[str, Any] = {
    "operation": None,
    "axis": None,
    "soft": False,
    "reduction": "none",
    "ignore_index": None,
    **{name: option.default for name, option in OPTIONS.items()},
    "exact": False,
}
_READ: dict[str, Callable[[str], Any]] = {
    "operation": str,
    "reduction": str,
    "axis": int,
    "ignore_index": int,
    "soft": lambda text: text == "True",
    "exact": lambda text: text == "True",
}


def encode(spec: LossSpec, **changes: Any) -> str:
    """Write the fields that are not the default as text, ``"operation=cross_entropy axis=1"``.

    `decode` reads it, and `kernel/options.h`. Options that are arrays are left out; `changes` are
    written in place of what the spec has.
    """

    def words() -> Iterator[str]:
        for name, default in _WRITTEN.items():
            value = changes[name] if name in changes else getattr(spec, name)
            if value is not OPERAND and value != default:
                yield f"{name}={value}"

    return " ".join(words())


def decode(text: str) -> dict[str, Any]:
    """Read what `encode` wrote: fields of a `LossSpec`. Other words are left out."""
    pairs = (word.split("=") for word in text.split())
    return {name: _READ.get(name, float)(value) for name, value in pairs if name in _WRITTEN}


def bound(xp: Namespace, spec: LossSpec, logits: Array, options: Sequence[Array] = ()) -> LossSpec:
    """Put the options that are arrays into a LossSpec, NaN where a value is out of range.

    So too the number of classes of the `logits`, where it is not known before a graph runs. What is
    computed with it is no longer hashable.
    """
    if spec.classes is None:
        spec = replace(spec, classes=xp.size_of(logits, spec.axis))
    if not options:
        return spec
    values = zip(spec.operands, options, strict=True)
    return replace(spec, **{name: in_range(xp, name, value) for name, value in values})


def in_range(xp: Namespace, name: str, value: Array) -> Array:
    """Replace the value of an option by NaN where it is out of range, which traces cannot raise."""
    return xp.where(OPTIONS[name].holds(value), value, xp.nan)


def is_given(option: Any) -> bool:
    """Whether an option is an array, or a number other than 0."""
    return not isinstance(option, float) or option != 0.0


def is_scaled(spec: LossSpec) -> bool:
    """Whether the temperature is an array, or a number other than 1."""
    return not isinstance(spec.temperature, float) or spec.temperature != 1.0
