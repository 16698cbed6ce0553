"""Floating-point formats by name, and distances in their units in the last place.

NumPy has no bfloat16, so formats are described here and values travel in wider types: as float64
what a framework returned, which is exact, and as longdouble what is true.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format.

    Parameters
    ----------
    name
        Name of the dtype.
    precision
        Bits of the significand, the implicit one included.
    min_exponent
        Exponent of the smallest normal number.
    """

    name: str
    precision: int
    min_exponent: int

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger number."""
        return 2.0 ** (1 - self.precision)

    @property
    def tiny(self) -> float:
        """Smallest normal number."""
        return 2.0**self.min_exponent

    @property
    def max(self) -> float:
        """Largest finite number."""
        return (2.0 - self.eps) * 2.0 ** (1 - self.min_exponent)

    def ulp(self, values: Array) -> Array:
        """Return the unit in the last place at each finite value."""
        wide = np.asarray(values, np.longdouble)
        _, exponent = np.frexp(np.where(np.isfinite(wide), wide, 0.0))
        exponent = np.maximum(exponent - 1, self.min_exponent)
        exponent = np.where(wide == 0.0, self.min_exponent, exponent)
        return np.ldexp(np.longdouble(1.0), exponent - (self.precision - 1))

    def round(self, values: Array) -> Array:
        """Round to the nearest number of the format, ties to even; keeps longdouble."""
        wide = np.asarray(values, np.longdouble)
        with np.errstate(all="ignore"):
            unit = self.ulp(wide)
            rounded = np.where(np.isfinite(wide), np.rint(wide / unit) * unit, wide)
            return np.where(np.abs(rounded) > self.max, np.copysign(np.inf, rounded), rounded)


FORMATS = {
    form.name: form
    for form in (
        Format("float16", 11, -14),
        Format("bfloat16", 8, -126),
        Format("float32", 24, -126),
        Format("float64", 53, -1022),
    )
}


def distance(got: Array, truth: Array, form: Format, at: Array | None = None) -> Array:
    """Return how far results are from the truth, in units in the last place.

    The units are those at the truth, or at other values of the same shape.

    What is below the smallest normal number in both counts as equal, since hardware may flush it
    to zero. Infinities and NaN are at distance 0 of their like and infinitely far from the rest.
    """
    with np.errstate(all="ignore"):
        error = np.abs(got - truth) / form.ulp(truth if at is None else at)
        small = (np.abs(truth) < form.tiny) & (np.abs(got) < form.tiny)
        expected = form.round(truth)  # overflows where the dtype does
        alike = (got == expected) | (np.isnan(got) & np.isnan(expected))
        special = ~(np.isfinite(got) & np.isfinite(expected))
        return np.where(special, np.where(alike, 0.0, np.inf), np.where(small, 0.0, error))
