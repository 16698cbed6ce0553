"""What a comparison found, as a tree of frozen records: the schema of ``xentx compare --json``.

Renderers read a `Report` and nothing else. Names and meanings of fields change only together with
`SCHEMA_VERSION`: its first number when a field is removed or means something else, its second when
one is added.
"""

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = "2.1"

Number = float | int
Nested = Number | tuple["Nested", ...]
"""A scalar or an array as nested tuples."""

Verdict = Literal["accurate", "close", "wrong", "error", "unavailable", "not applicable"]
CornerVerdict = Literal["agrees", "deviates", "unavailable", "not applicable"]
Difference = Literal[
    "accepts", "refuses", "loss", "gradient", "shape", "dtype", "sign of zero", "error"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A library as it stands on the machine that measured."""

    name: str
    """Import name."""
    version: str | None
    """Installed version; None where it is not installed."""
    problem: str | None
    """Why nothing of it could be measured, and what to do about it; None where something could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss that was to be measured: xentx's own or a native one."""

    id: str
    """Short and unique name, which measurements refer to."""
    name: str
    """Public name in full."""
    framework: str
    """Whose arrays it takes: "numpy", "torch", "jax", "tensorflow" or "keras"."""
    library: str
    """Import name of the library that it belongs to; see `Report.libraries`."""
    is_xentx: bool
    """Whether it is xentx's own."""
    compiled: bool
    """Whether it ran under the framework's compiler."""
    takes: str
    """What its first argument has to be: "logits" or "probabilities"."""
    targets: tuple[str, ...]
    """What it takes as a target: "indices", "probabilities" or both."""
    class_axis: str
    """Which axis holds the classes, in words."""
    options: dict[str, str]
    """xentx's name of each option that it has, and its own spelling."""
    reductions: dict[str, str]
    """xentx's name of each reduction that it has, and its own spelling; in parentheses where it is
    not an option but what users write after the loss."""
    logits_dtypes: tuple[str, ...]
    """Dtypes of logits that it takes."""
    target_dtypes: tuple[str, ...]
    """Dtypes of class indices that it takes."""
    documentation: str
    """Where it is documented."""
    caveat: str
    """For a bad example, what is wrong with it; else empty."""
    problem: str | None
    """Why it could not be measured at all; None where it could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far results are from the truth."""

    max_ulp: float
    """Largest error, in units in the last place of the logits' dtype at the true value; of a
    gradient for a soft target at the larger of that and the target. Infinity where a result is
    not finite and should be, or the reverse."""
    mean_ulp: float
    """Mean error, in the same units."""
    max_absolute: float
    """Largest absolute error among finite results."""
    zeros: float
    """Fraction of the results that are exactly 0 where the true value is a normal number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One loss on one regime."""

    loss: str
    """`Loss.id`."""
    verdict: Verdict
    """"accurate" within the tolerance in ULP; "close" within the absolute tolerance only; "wrong"
    in neither; "error" where it raised; "unavailable" where its library is missing or fails;
    "not applicable" where it can't be asked this."""
    message: str | None
    """The error, or the reason why there are no figures."""
    mean: float | None
    """Mean of the rows' losses."""
    loss_errors: Errors | None
    """Errors of the rows' losses. For a loss that only reduces, of the 200 rows whose true losses
    are the smallest and the largest."""
    gradient_errors: Errors | None
    """Errors of the entries of the gradient; None for a loss without a gradient."""
    gradient_norm: float | None
    """Euclidean norm of the gradient of the mean; None for a loss without a gradient."""
    row_losses: Nested | None
    """The rows' losses, for regimes of few rows."""
    row_gradients: Nested | None
    """The gradient of their sum, for regimes of few rows."""
    seconds: float | None
    """Time of one call for all rows, gradient included: the best of a few, after a first call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeReport:
    """All losses on one kind of logits in one dtype."""

    name: str
    """Name of the regime, or of the user's file."""
    description: str
    """What the logits are."""
    dtype: str
    """Dtype of the logits."""
    rows: int
    """Number of rows."""
    classes: int
    """Number of classes."""
    seed: int
    """Seed of the logits."""
    loss_tolerance: float
    """Error of a loss that counts as accurate, in ULP."""
    gradient_tolerance: float
    """Error of a gradient's entry that counts as accurate, in ULP."""
    nan_rows: int
    """Number of rows whose true loss is NaN, since their logits hold NaN or +inf, or -inf alone. It
    makes the mean NaN, and losses that return NaN for these rows are accurate there."""
    truth: float | None
    """True mean of the rows' losses; None where nothing was measured."""
    true_losses: Nested | None
    """The rows' true losses, for regimes of few rows."""
    true_gradients: Nested | None
    """The true gradient of their sum, for regimes of few rows."""
    problem: str | None
    """Why nothing was measured on it; None where something was."""
    measurements: tuple[Measurement, ...]
    """One for each loss, in the order of `Report.losses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call came to: a loss and a gradient, or an error."""

    error: str | None
    """Type of the error raised; None where there was none."""
    message: str | None
    """First line of its text."""
    loss: Nested | None
    """The loss."""
    dtype: str | None
    """Dtype of the loss."""
    gradient: Nested | None
    """The gradient of the loss's sum by the logits; None where there is none, or it is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CornerResult:
    """One loss on one corner case."""

    loss: str
    """`Loss.id`."""
    verdict: CornerVerdict
    """Whether it does what xentx's rule says."""
    differences: tuple[Difference, ...]
    """In what it deviates. "accepts": it returns a value where the rule is an error; "refuses": the
    reverse; "error": xentx's own raises another error than the rule's."""
    message: str | None
    """Why there is no outcome, for "unavailable" and "not applicable"."""
    outcome: Outcome | None
    """What it returned or raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CornerReport:
    """All losses on one corner case."""

    name: str
    """Short and unique name."""
    group: str
    """What kind of corner it is."""
    title: str
    """What is asked, in words."""
    logits: str
    """The logits as NumPy prints them, shortened."""
    target: str
    """The target, likewise."""
    options: dict[str, str]
    """Options and reduction, as they are printed."""
    logits_dtype: str
    """Dtype of the logits."""
    target_dtype: str
    """Dtype of the target."""
    rule: str
    """xentx's rule, in words."""
    expected: Outcome
    """What the rule comes to where the target's values can be seen."""
    traced: Outcome
    """What it comes to under a compiler, which can't see values."""
    results: tuple[CornerResult, ...]
    """One for each loss, in the order of `Report.losses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a comparison found."""

    schema: str
    """Version of this schema."""
    xentx: str
    """Version of xentx."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor."""
    truth_precision: int
    """Bits of the significand in which the truth was computed."""
    keras_backends: tuple[str, ...]
    """The backends that Keras's losses ran on; empty where none of its losses could be measured."""
    fail_on: str
    """What counts as a failure: "none", "xentx" or "any"."""
    passed: bool
    """Whether nothing failed."""
    failures: tuple[str, ...]
    """What failed, one line each."""
    libraries: tuple[Library, ...]
    """The libraries that the losses belong to."""
    losses: tuple[Loss, ...]
    """The losses that were to be measured, xentx's own first."""
    regimes: tuple[RegimeReport, ...]
    """Accuracy, one for each regime and dtype."""
    corners: tuple[CornerReport, ...]
    """Corner cases."""
