"""What `xentx diff` found, as frozen records: also the schema of ``xentx diff --json``.

Names and meanings of fields change only together with `SCHEMA_VERSION`: its first number when a
field is removed or means something else, its second when one is added.
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
    """That native's public name in full."""
    options: dict[str, str]
    """Options given, by xentx's names."""
    reduction: str
    """The reduction, by xentx's name."""
    version: str | None
    """Installed version of its library; None where it is not installed."""
    problem: str | None
    """Why it could not be called here; None where it could."""
    documentation: str
    """Where it is documented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in which the calls differ."""

    aspect: str
    """What it is about."""
    a: str
    """How it is in the first."""
    b: str
    """How it is in the second."""
    note: str
    """What follows from it; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CornerDifference:
    """A corner case that the two answer differently."""

    name: str
    """Name of the corner; see `xentx.compare.CORNERS`."""
    title: str
    """What is asked."""
    differences: tuple[str, ...]
    """In what they differ: "error", "shape", "loss", "gradient", "dtype" or "sign of zero"."""
    a: Outcome
    """What the first returned or raised."""
    b: Outcome
    """What the second returned or raised."""
    rule: str
    """xentx's rule, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A suggestion and the first call, both run on the same random data."""

    equal: bool
    """Whether loss and gradient agree to rounding."""
    loss_ulp: float
    """Largest difference of the losses, in float32 ULP of the largest loss."""
    gradient_ulp: float | None
    """The same for the gradients; None where one of them has none."""
    rows: int
    """How many rows of logits."""
    classes: int
    """How many classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A call that computes what the first call does."""

    loss: str
    """Id of what is called."""
    code: str
    """The call for logits of shape (rows, C), with what goes before and after it; empty where there
    is none."""
    reason: str
    """Why there is none, or why it is not verified; empty where neither."""
    verification: Verification | None
    """What came of running it; None where it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that was found."""

    schema: str
    """Version of this schema."""
    a: Side
    """The first call: what is wanted."""
    b: Side
    """The second: where it is wanted."""
    target: str
    """What the target is meant as: "indices" or "probabilities"."""
    differences: tuple[Difference, ...]
    """What the two differ in."""
    suggestions: tuple[Suggestion, ...]
    """Calls equal to the first: by the second's loss, then by xentx on the second's arrays."""
    corners: tuple[CornerDifference, ...]
    """Corner cases that they answer differently."""
    corners_asked: int
    """How many corner cases both were asked."""
