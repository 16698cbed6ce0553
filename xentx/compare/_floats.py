"""Floating-point formats by name, and distances in their units in the last place.

NumPy has no bfloat16. Therefore formats are described here, and values are stored in wider types:
results of frameworks as float64, which is exact, and true values as longdouble.
"""

from dataclasses import dataclass
from typing import Any, Self

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


@dataclass(frozen=True, slots=True)
class Yardstick:
    """True values, and derived arrays for measuring the errors of many results.

    Numbers below the smallest normal number count as equal, because hardware may flush them to
    zero. The distance between equal infinities, or between two NaNs, is 0. The distance between
    one of them and another number is infinite.

    Parameters
    ----------
    form
        Format of the results.
    true
        The true values.
    unit
        The unit in the last place at each true value.
    rounded
        The true values rounded to the format. On overflow, infinities.
    small
        Whether each is below the smallest normal number.
    """

    form: Format
    true: Array
    unit: Array
    rounded: Array
    small: Array

    @classmethod
    def of(cls, true: Array, form: Format, at: Array | None = None) -> Self:
        """Make one with the units at the true values, or at other values of the same shape."""
        unit = form.ulp(true if at is None else at)
        # float64 holds every format, and is faster to compare.
        rounded = form.round(true).astype(np.float64)
        return cls(form, np.asarray(true), unit, rounded, np.abs(true) < form.tiny)

    def at(self, rows: Any) -> Self:
        """Keep the rows that an index names."""
        parts = (part[rows] for part in (self.true, self.unit, self.rounded, self.small))
        return type(self)(self.form, *parts)

    def absolute(self, got: Array) -> Array:
        """Return the absolute errors of results."""
        with np.errstate(all="ignore"):
            return np.abs(got - self.true)

    def distance(self, got: Array) -> Array:
        """Return the errors of results in units in the last place."""
        with np.errstate(all="ignore"):
            error = self.absolute(got) / self.unit
        if self.small.any():
            error = np.where(self.small & (np.abs(got) < self.form.tiny), 0.0, error)
        special = ~(np.isfinite(got) & np.isfinite(self.rounded))
        if special.any():
            alike = (got == self.rounded) | (np.isnan(got) & np.isnan(self.rounded))
            error = np.where(special, np.where(alike, 0.0, np.inf), error)
        return error


def distance(got: Array, true: Array, form: Format) -> Array:
    """Return the errors of results in units in the last place: see `Yardstick`."""
    return Yardstick.of(true, form).distance(got)
