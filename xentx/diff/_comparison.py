"""The result of `xentx diff` as frozen dataclasses, which are the schema of ``--json`` too.

`SCHEMA_VERSION` changes with the fields: its first number when a field is removed or changes its
meaning, its second number when a field is added.
"""

from dataclasses import dataclass

from xentx.compare.report import Outcome

SCHEMA_VERSION = "1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two calls."""

    call: str
    """As the user wrote it."""
    loss: str
    """Id of the native that it calls."""
    name: str
    """Full public name of this native."""
    options: dict[str, str]
    """Options given, by xentx's names."""
    reduction: str
    """The reduction, by xentx's name."""
    version: str | None
    """Installed version of its library. None if it is not installed."""
    problem: str | None
    """Why it could not be called, or None."""
    documentation: str
    """Address of its documentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference between the calls."""

    aspect: str
    """What differs."""
    a: str
    """The first call's value."""
    b: str
    """The second call's value."""
    note: str
    """The consequence. May be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CornerDifference:
    """A corner case with different results."""

    name: str
    """Name of the corner; see `xentx.compare.CORNERS`."""
    title: str
    """The question of the corner case."""
    differences: tuple[str, ...]
    """What differs: "error", "shape", "loss", "gradient", "dtype" or "sign of zero"."""
    a: Outcome
    """The value or error of the first call."""
    b: Outcome
    """The value or error of the second call."""
    rule: str
    """xentx's rule, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The results of a suggestion and of the first call for the same random data."""

    equal: bool
    """Whether loss and gradient agree up to rounding."""
    loss_ulp: float
    """Largest difference of the losses, in float32 ULP of the largest loss."""
    gradient_ulp: float | None
    """The same for the gradients. None if one of the calls has no gradient."""
    rows: int
    """Number of rows."""
    classes: int
    """Number of classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A call that computes the same as the first call."""

    loss: str
    """Id of the loss that is called."""
    code: str
    """The call for logits of shape (rows, C), with the code before and after it. Empty if there is
    no such call."""
    reason: str
    """Why there is no call, or why it is not verified. Empty otherwise."""
    verification: Verification | None
    """Results of the call. None if it was not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of a comparison of two calls."""

    schema: str
    """Version of this schema."""
    a: Side
    """The first call, whose result is wanted."""
    b: Side
    """The second call, whose loss the first suggestion uses."""
    target: str
    """The kind of the target: "indices" or "probabilities"."""
    differences: tuple[Difference, ...]
    """The differences between the calls."""
    suggestions: tuple[Suggestion, ...]
    """Calls equal to the first: one of the second's loss, then one of xentx for its arrays."""
    corners: tuple[CornerDifference, ...]
    """Corner cases with different results."""
    corners_asked: int
    """Number of corner cases that both support."""
