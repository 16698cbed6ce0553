"""What is explained: records that renderers read, and nothing else.

Numbers stand in them as they were computed and as text, so that every renderer shows the same
digits: the fewest that read back as the same number of the dtype.
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
    """What it is: a short formula."""
    way: str
    """How it was computed: "as written", a native's id, a function of xentx, or "truth"."""
    frameworks: tuple[str, ...]
    """In which frameworks, all with the same bits; none for the truth."""
    rows: tuple[tuple[float, ...], ...]
    """The numbers, a tuple for each row."""
    text: tuple[str, ...]
    """Each row's numbers with all their digits."""
    ulp: float | None
    """Largest error in units in the last place of the dtype; None where no truth is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """A step in the code of one framework."""

    framework: str
    """Its title."""
    imports: str
    """Import statements, which fail where it is missing."""
    body: str
    """What comes after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the explanation."""

    key: str
    """Short and unique name."""
    title: str
    """Heading."""
    tex: str
    """The formula in TeX; empty where there is none."""
    plain: str
    """The same formula in plain text."""
    paragraphs: tuple[str, ...]
    """What is done and why."""
    figures: tuple[Figure, ...]
    """The numbers."""
    notes: tuple[str, ...]
    """What is to be seen in these numbers."""
    code: str
    """The step in NumPy, going on from the steps before; may be empty."""
    snippets: tuple[Snippet, ...] = ()
    """The step in the frameworks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A number as the article prints it, and as it is."""

    quantity: str
    """What the number is."""
    printed: str
    """How the article prints it."""
    value: float
    """What it is."""

    @property
    def rounded(self) -> str:
        """The number, rounded to as many decimals as the article prints."""
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
    """What could not be measured."""

    name: str
    """A framework, or the id of a native."""
    reason: str
    """Why, and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The whole path for some rows."""

    title: str
    """Heading."""
    logits: tuple[tuple[float, ...], ...]
    """The logits, rounded to the dtype."""
    target: tuple[int, ...]
    """The class of each row."""
    dtype: str
    """Name of the dtype that all is computed in."""
    versions: tuple[tuple[str, str], ...]
    """The frameworks that computed, and their versions."""
    steps: tuple[Step, ...]
    """From logits to the gradient."""
    corrections: tuple[Correction, ...]
    """What the article rounds wrongly, where these are the article's rows."""
    left_out: tuple[LeftOut, ...]
    """What could not be measured."""
