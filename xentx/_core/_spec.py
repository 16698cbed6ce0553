"""The specification of a loss without its arrays. It is hashable, as a key for compilers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xentx._types import Array, Namespace

# The value in a LossSpec of an option that is an array. `bound` replaces it by the array.
OPERAND = "operand"


@dataclass(frozen=True, slots=True)
class Option:
    """An option that is a number, or an array of no dimensions.

    Parameters
    ----------
    default
        The value without an effect.
    is_positive
        Whether it must be above 0. Otherwise it may be 0.
    is_share
        Whether it must be at most 1. Otherwise it may be any finite number.
    """

    default: float | None
    is_positive: bool = False
    is_share: bool = False

    def holds(self, value: Any) -> Any:
        """Whether a number is in the range of the option. For an array, the result is an array."""
        above = value > 0.0 if self.is_positive else value >= 0.0
        return above & (value <= 1.0 if self.is_share else value < math.inf)

    def range_of(self, name: str) -> str:
        """Return the range in words: ``"0 <= name <= 1"``."""
        above, below = "<" if self.is_positive else "<=", "<= 1" if self.is_share else "< inf"
        return f"0 {above} {name} {below}"


# Options that are arrays follow the other arrays of an operation in this order.
OPTIONS = {
    "label_smoothing": Option(0.0, is_share=True),
    "z_loss": Option(0.0),
    "logit_softcap": Option(None, is_positive=True),
    "temperature": Option(1.0, is_positive=True),
}


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtypes of a computation.

    Parameters
    ----------
    compute
        The dtype of elementwise operations: float64 for float64 logits, float32 for all others.
    accumulate
        The dtype of sums: float64 if the framework has it.
    recover
        Whether the rounding error of ``max - x`` is recovered. This is not needed if the logits are
        narrower than `compute`, because the final rounding is larger.
    compensate
        Whether sums over rows are compensated, because `accumulate` is float32.
    """

    compute: Any
    accumulate: Any
    recover: bool
    compensate: bool


@dataclass(frozen=True, slots=True)
class LossSpec:
    """The specification of a loss without its arrays.

    Parameters
    ----------
    operation
        Name of the module of `xentx._core` that computes it.
    axis, classes
        The class axis, not negative, and the number of classes. The number is None if a compiler
        does not know it. `bound` replaces it by an array.
    precision
        The dtypes to compute in.
    soft
        Whether the target is a distribution over the classes, and not a class index.
    reduction
        "none", "sum", "mean" or "weighted_mean".
    ignore_index
        The class index of the rows to ignore. None if there is no such row.
    label_smoothing, z_loss, logit_softcap, temperature
        As in `xentx.cross_entropy`: a number, or OPERAND for an array.
    beta
        The divergence that `kl_divergence` computes.
    exact
        Whether to compute in float64 for any dtype of the logits.
    checked
        Whether all class indices have been checked to be in range.
    device
        The device of new arrays that are combined with the others. None if the framework moves
        arrays itself.
    final
        Whether the expression of the value is not differentiated, because the operation has its own
        derivative rules. Then the expression need not have the correct derivatives at infinity.
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


# The fields that operators and the CPU kernel get as text, with their defaults. The others follow
# from the arrays.
_WRITTEN: dict[str, Any] = {
    "operation": None,
    "axis": None,
    "soft": False,
    "reduction": "none",
    "ignore_index": None,
    **{name: option.default for name, option in OPTIONS.items()},
    "beta": 0.0,
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

    `decode` and `kernel/options.h` read it. Options that are arrays are left out. `changes` replace
    values of the spec.
    """

    def words() -> Iterator[str]:
        for name, default in _WRITTEN.items():
            value = changes[name] if name in changes else getattr(spec, name)
            if value is not OPERAND and value != default:
                yield f"{name}={value}"

    return " ".join(words())


def decode(text: str) -> dict[str, Any]:
    """Parse the text of `encode` to fields of a `LossSpec`. Other words are ignored."""
    pairs = (word.split("=") for word in text.split())
    return {name: _READ.get(name, float)(value) for name, value in pairs if name in _WRITTEN}


def bound(xp: Namespace, spec: LossSpec, logits: Array, options: Sequence[Array] = ()) -> LossSpec:
    """Put the options that are arrays into a LossSpec, with NaN for values out of range.

    The number of classes is put in too if it is unknown before a graph runs. The result is not
    hashable.
    """
    if spec.classes is None:
        spec = replace(spec, classes=xp.size_of(logits, spec.axis))
    if not options:
        return spec
    values = zip(spec.operands, options, strict=True)
    return replace(spec, **{name: in_range(xp, name, value) for name, value in values})


def in_range(xp: Namespace, name: str, value: Array) -> Array:
    """Replace the value of an option by NaN if it is out of range. Traced code cannot raise."""
    return xp.where(OPTIONS[name].holds(value), value, xp.nan)


def is_given(option: Any) -> bool:
    """Whether an option is an array, or a number other than 0."""
    return not isinstance(option, float) or option != 0.0


def is_scaled(spec: LossSpec) -> bool:
    """Whether the temperature is an array, or a number other than 1."""
    return not isinstance(spec.temperature, float) or spec.temperature != 1.0
