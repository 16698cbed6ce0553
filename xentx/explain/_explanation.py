"""The dataclasses of an explanation, which the renderers read.

They hold each number as it was computed and as text, so that all renderers show the same digits.
The text has the fewest digits that read back as the same number of the dtype.
"""

from dataclasses import dataclass

import numpy as np

from xentx.compare._floats import Format


def shortest(value: float, form: Format) -> str:
    """Return the fewest digits that read back as `value`, a number of the format.

    Examples
    --------
    >>> from xentx.compare._floats import FORMATS
    >>> shortest(0.23122389614582062, FORMATS["float32"])
    '0.2312239'
    >>> shortest(1000.0, FORMATS["bfloat16"])
    '1000.0'
    """
    texts = (f"{value:.{digits}g}" for digits in range(1, 18))
    found = next(
        (text for text in texts if float(form.round(np.asarray(float(text)))) == value), str(value)
    )
    return repr(float(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One quantity, computed in one way."""

    quantity: str
    """A short formula."""
    way: str
    """How it was computed: "as written", a native's id, a function of xentx, or "truth"."""
    frameworks: tuple[str, ...]
    """The frameworks that computed it, all with the same bits. Empty for the true value."""
    rows: tuple[tuple[float, ...], ...]
    """The numbers, a tuple for each row."""
    text: tuple[str, ...]
    """The numbers of each row with all their digits."""
    ulp: float | None
    """Largest error in units in the last place of the dtype. None if there is no true value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """A step in the code of one framework."""

    framework: str
    """Its title."""
    imports: str
    """Import statements, which fail if the framework is not installed."""
    body: str
    """The code after the imports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the explanation."""

    key: str
    """Short and unique name."""
    title: str
    """Heading."""
    tex: str
    """The formula in TeX, or an empty string."""
    plain: str
    """The same formula in plain text."""
    paragraphs: tuple[str, ...]
    """What the step does, and why."""
    figures: tuple[Figure, ...]
    """The numbers."""
    notes: tuple[str, ...]
    """Remarks about these numbers."""
    code: str
    """The step in NumPy, which uses the code of the previous steps. May be empty."""
    snippets: tuple[Snippet, ...] = ()
    """The step in the frameworks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A number as the article prints it, and its true value."""

    quantity: str
    """What the number is."""
    printed: str
    """How the article prints it."""
    value: float
    """The true value."""

    @property
    def rounded(self) -> str:
        """The true value, rounded to as many decimals as the article prints."""
        decimals = len(self.printed.partition(".")[2])
        return f"{self.value:.{decimals}f}"

    @property
    def text(self) -> str:
        """The correction in words."""
        verdict = "right" if self.rounded == self.printed else f"not {self.printed}"
        decimals = len(self.printed.partition(".")[2])
        return (
            f"{self.quantity} is {self.value:.9f}: rounded to {decimals} decimals this is "
            f"{self.rounded}, {verdict}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A framework or a native that could not be measured."""

    name: str
    """A framework, or the id of a native."""
    reason: str
    """The reason, and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All steps for some rows."""

    title: str
    """Heading."""
    logits: tuple[tuple[float, ...], ...]
    """The logits, rounded to the dtype."""
    target: tuple[int, ...]
    """The class of each row."""
    dtype: str
    """Name of the dtype of the computation."""
    versions: tuple[tuple[str, str], ...]
    """The frameworks that computed, and their versions."""
    steps: tuple[Step, ...]
    """From logits to the gradient."""
    corrections: tuple[Correction, ...]
    """The numbers that the article rounds wrongly. Empty for other rows than the article's."""
    left_out: tuple[LeftOut, ...]
    """The frameworks and natives that could not be measured."""
