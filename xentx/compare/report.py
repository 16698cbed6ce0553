"""The result of a comparison as frozen dataclasses: the schema of ``xentx compare --json``.

Renderers read only a `Report`. `SCHEMA_VERSION` changes with the fields: its first number when a
field is removed or changes its meaning, its second number when a field is added.
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
    """A library on the machine that measured."""

    name: str
    """Import name."""
    version: str | None
    """Installed version. None if it is not installed."""
    problem: str | None
    """Why nothing of it could be measured, and what to do about it. None if something could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss of the comparison: one of xentx or a native one."""

    id: str
    """Short and unique name, which measurements refer to."""
    name: str
    """Full public name."""
    framework: str
    """The framework of its arrays: "numpy", "torch", "jax", "tensorflow" or "keras"."""
    library: str
    """Import name of its library; see `Report.libraries`."""
    is_xentx: bool
    """Whether it is a loss of xentx."""
    compiled: bool
    """Whether it ran under the framework's compiler."""
    takes: str
    """The kind of its first argument: "logits" or "probabilities"."""
    targets: tuple[str, ...]
    """The kinds of its target: "indices", "probabilities" or both."""
    class_axis: str
    """The axis of the classes, in words."""
    options: dict[str, str]
    """Its options: xentx's name and its own name of each."""
    reductions: dict[str, str]
    """Its reductions: xentx's name and its own name of each. In parentheses if it is not an option
    but code that users write after the loss."""
    logits_dtypes: tuple[str, ...]
    """Supported dtypes of the logits."""
    target_dtypes: tuple[str, ...]
    """Supported dtypes of class indices."""
    documentation: str
    """Address of its documentation."""
    caveat: str
    """For a bad example, what is wrong with it. Empty otherwise."""
    problem: str | None
    """Why it could not be measured, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors of results relative to the true values."""

    max_ulp: float
    """Largest error, in units in the last place of the logits' dtype at the true value. For a
    gradient with a soft target, the unit is that of the larger of the true value and the target.
    Infinity if a result is not finite and the true value is, or the reverse."""
    mean_ulp: float
    """Mean error, in the same units."""
    max_absolute: float
    """Largest absolute error among finite results."""
    zeros: float
    """Fraction of the results that are exactly 0 although the true value is a normal number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One loss on one regime."""

    loss: str
    """`Loss.id`."""
    verdict: Verdict
    """"accurate": within the tolerance in ULP. "close": within the absolute tolerance only.
    "wrong": within neither. "error": it raised. "unavailable": its library is missing or broken.
    "not applicable": it does not support this case."""
    message: str | None
    """The error, or the reason why there are no figures."""
    mean: float | None
    """Mean of the rows' losses."""
    loss_errors: Errors | None
    """Errors of the rows' losses. If a loss has no reduction "none", errors of 200 rows: those with
    the smallest and the largest true losses."""
    gradient_errors: Errors | None
    """Errors of the entries of the gradient. None for a loss without a gradient."""
    gradient_norm: float | None
    """Euclidean norm of the gradient of the mean. None for a loss without a gradient."""
    row_losses: Nested | None
    """The rows' losses, for regimes of few rows."""
    row_gradients: Nested | None
    """The gradient of their sum, for regimes of few rows."""
    seconds: float | None
    """Shortest time of a few calls for all rows with the gradient, after a first call."""


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
    """Number of rows whose true loss is NaN, because their logits contain NaN or +inf, or only
    -inf. Then the mean is NaN. A loss that returns NaN for these rows is accurate."""
    truth: float | None
    """True mean of the rows' losses. None if nothing was measured."""
    true_losses: Nested | None
    """The rows' true losses, for regimes of few rows."""
    true_gradients: Nested | None
    """The true gradient of their sum, for regimes of few rows."""
    problem: str | None
    """Why nothing was measured on it, or None."""
    measurements: tuple[Measurement, ...]
    """One for each loss, in the order of `Report.losses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a call: a loss and a gradient, or an error."""

    error: str | None
    """Type of the error, or None."""
    message: str | None
    """First line of its text."""
    loss: Nested | None
    """The loss."""
    dtype: str | None
    """Dtype of the loss."""
    gradient: Nested | None
    """Gradient of the sum of the loss with respect to the logits. None if there is none, or if it
    is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CornerResult:
    """One loss on one corner case."""

    loss: str
    """`Loss.id`."""
    verdict: CornerVerdict
    """Whether it follows xentx's rule."""
    differences: tuple[Difference, ...]
    """What differs from the rule. "accepts": it returns a value where the rule is an error.
    "refuses": the reverse. "error": xentx raises another error than the rule's."""
    message: str | None
    """Why there is no outcome, for "unavailable" and "not applicable"."""
    outcome: Outcome | None
    """The value that it returned, or the error that it raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CornerReport:
    """All losses on one corner case."""

    name: str
    """Short and unique name."""
    group: str
    """Kind of the corner case."""
    title: str
    """Description."""
    logits: str
    """The logits as NumPy prints them, shortened."""
    target: str
    """The target, in the same form."""
    options: dict[str, str]
    """Options and reduction as text."""
    logits_dtype: str
    """Dtype of the logits."""
    target_dtype: str
    """Dtype of the target."""
    rule: str
    """xentx's rule, in words."""
    expected: Outcome
    """The result by the rule if the target's values are concrete."""
    traced: Outcome
    """The result by the rule if the target is traced by a compiler."""
    results: tuple[CornerResult, ...]
    """One for each loss, in the order of `Report.losses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a comparison."""

    schema: str
    """Version of this schema."""
    xentx: str
    """Version of xentx."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor."""
    truth_precision: int
    """Bits of the significand of the true values."""
    keras_backends: tuple[str, ...]
    """The backends that Keras's losses ran on. Empty if none of its losses could be measured."""
    fail_on: str
    """What counts as a failure: "none", "xentx" or "any"."""
    passed: bool
    """Whether there are no failures."""
    failures: tuple[str, ...]
    """The failures, one line each."""
    libraries: tuple[Library, ...]
    """The libraries of the losses."""
    losses: tuple[Loss, ...]
    """The losses, those of xentx first."""
    regimes: tuple[RegimeReport, ...]
    """Accuracy, one for each regime and dtype."""
    corners: tuple[CornerReport, ...]
    """Corner cases."""
