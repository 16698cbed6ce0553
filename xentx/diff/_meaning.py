"""What a call computes, in particular the divisor of its mean.

The frameworks compute the same loss of a row and several different means. A divisor is represented
as a set of factors: their product is summed over the rows. The empty set is the number of rows.
"""

from dataclasses import dataclass
from typing import Literal

from xentx.diff._call import Call, Symbol, library
from xentx.natives import Native
from xentx.natives.vocabulary import Target

Factor = Literal["class weight", "sample weight", "kept", "nonzero", "mass"]
Divisor = frozenset[Factor]

_IN_WORDS: dict[Factor, str] = {
    "class weight": "the target's class weight",
    "sample weight": "the sample weight",
    "kept": "1 if the row is not ignored, else 0",
    "nonzero": "1 if the sample weight is not 0, else 0",
    "mass": "the sum of the weighted and smoothed target",
}

_ROWS: Divisor = frozenset()

# The tests measure these, if the library is installed.
_DIVISORS: dict[tuple[str, str], dict[Target, Divisor]] = {
    ("torch", "mean"): {
        "indices": frozenset({"class weight", "kept"}),
        "probabilities": _ROWS,
    },
    ("xentx", "mean"): {
        "indices": frozenset({"class weight", "sample weight", "kept"}),
        "probabilities": frozenset({"sample weight"}),
    },
    ("xentx", "weighted_mean"): {
        "indices": frozenset({"mass", "sample weight", "kept"}),
        "probabilities": frozenset({"mass", "sample weight"}),
    },
    ("keras", "mean"): {"indices": frozenset({"kept"}), "probabilities": _ROWS},
    ("keras", "weighted_mean"): {
        "indices": frozenset({"sample weight", "kept"}),
        "probabilities": frozenset({"sample weight"}),
    },
    ("sklearn", "mean"): {"indices": frozenset({"sample weight"})},
    ("tf", "mean"): {
        "indices": frozenset({"nonzero"}),
        "probabilities": frozenset({"nonzero"}),
    },
    ("tf", "weighted_mean"): {
        "indices": frozenset({"sample weight"}),
        "probabilities": frozenset({"sample weight"}),
    },
}

DEFAULT_IGNORED = {"torch": -100, "xentx": -100}
"""Class index that the losses of a library ignore by default, by library."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a call computes.

    Parameters
    ----------
    weight, sample_weight
        Names of the arrays, or None.
    smoothing
        Label smoothing, 0 by default.
    ignored
        Class index to ignore, if the call gives one.
    reduction
        "none", "mean" or "sum".
    divisor
        Divisor of the mean. None if it is not known, and for "none" and "sum".
    """

    weight: str | None
    sample_weight: str | None
    smoothing: float
    ignored: int | None
    reduction: Literal["none", "mean", "sum"]
    divisor: Divisor | None


def meaning(call: Call, kind: Target) -> Meaning:
    """Return what a call computes for a kind of target."""
    options = call.options
    weight, sample_weight = options.get("weight"), options.get("sample_weight")
    ignored = options.get("ignore_index")
    reduction: Literal["none", "mean", "sum"] = (
        call.reduction if call.reduction in ("none", "sum") else "mean"  # type: ignore[assignment]
    )
    return Meaning(
        weight=weight.name if isinstance(weight, Symbol) else None,
        sample_weight=sample_weight.name if isinstance(sample_weight, Symbol) else None,
        smoothing=float(options.get("label_smoothing", 0.0)),  # type: ignore[arg-type]
        ignored=ignored if isinstance(ignored, int) else None,
        reduction=reduction,
        divisor=divisor(call, kind) if reduction == "mean" else None,
    )


def divisor(call: Call, kind: Target) -> Divisor | None:
    """Return the divisor of the mean of a call, for the options that it has."""
    full = _full_divisor(call.native, call.reduction, kind)
    if full is None:
        return None
    present: dict[Factor, bool] = {
        "class weight": "weight" in call.options,
        "sample weight": "sample_weight" in call.options,
        "kept": "ignore_index" in call.options,
        "nonzero": "sample_weight" in call.options,
        "mass": "weight" in call.options,
    }
    factors = {factor for factor in full if present[factor]}
    if "mass" in factors and kind == "indices" and not call.options.get("label_smoothing"):
        factors = (factors - {"mass"}) | {"class weight"}
    return frozenset(factors)


def _full_divisor(native: Native, reduction: str, kind: Target) -> Divisor | None:
    if reduction not in native.reductions:
        return None
    if native.reductions[reduction].startswith("("):  # a mean outside of the loss
        return _ROWS
    kinds = _DIVISORS.get((library(native), reduction), {})
    # A loss that takes probabilities only gets class indices as one-hot rows.
    return kinds.get(kind if kind in native.targets else native.targets[0])


def in_words(divisor: Divisor | None) -> str:
    """Describe a divisor."""
    if divisor is None:
        return "not known"
    if not divisor:
        return "the number of rows"
    if divisor == {"kept"}:
        return "the number of rows not ignored"
    if divisor == {"nonzero"}:
        return "the number of rows whose sample weight is not 0"
    factors = [words for factor, words in _IN_WORDS.items() if factor in divisor]
    return f"the sum over the rows of {', times '.join(factors)}"
