"""The explained rows with their measurements, from which `_steps` makes figures and notes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xentx.compare._floats import FORMATS, Format, distance
from xentx.explain._explanation import Figure, Snippet, shortest
from xentx.explain._measure import Measured, Truth

Array = np.ndarray[Any, Any]

WRITTEN = "as written"
TRUTH = "truth"


def tuples(values: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in np.ravel(row)) for row in values)


def short(value: float) -> str:
    """Format a number for a sentence."""
    return f"{float(value):.7g}"


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def giving(ways: Sequence[str]) -> str:
    names = [f"`{way}`" for way in dict.fromkeys(ways)]
    return f"{listed(names)} {'gives' if len(names) == 1 else 'give'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is computed for a step."""

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    snippets: tuple[Snippet, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows and all measurements on them."""

    given: Array
    logits: Array
    target: Array
    form: Format
    measured: tuple[Measured, ...]
    truth: Truth

    @property
    def dtype(self) -> str:
        return self.form.name

    def each(self) -> Iterator[tuple[str, int]]:
        """Return the name of each row in sentences, and its index."""
        several = len(self.target) > 1
        return ((f"row {i}" if several else "the row", i) for i in range(len(self.target)))

    def _text(self, values: Array, form: Format) -> tuple[str, ...]:
        rows = (", ".join(shortest(v, form) for v in row) for row in tuples(values))
        wide = values.ndim > 1 and values.shape[1] > 1
        return tuple(f"[{row}]" if wide else row for row in rows)

    def figures(
        self,
        quantity: str,
        way: str | Callable[[Measured], str],
        values: Callable[[Measured], Array | None],
        true: Array | None = None,
    ) -> list[Figure]:
        """Make a figure for each set of frameworks that give the same bits in the same way."""
        found: dict[tuple[str, tuple[str, ...]], list[tuple[str, Array]]] = {}
        for one in self.measured:
            array = values(one)
            if array is not None:
                name = way if isinstance(way, str) else way(one)
                key = name, self._text(array, self.form)
                found.setdefault(key, []).append((one.ways.framework, array))
        return [
            Figure(
                quantity=quantity,
                way=name,
                frameworks=tuple(framework for framework, _ in same),
                rows=tuples(same[0][1]),
                text=text,
                ulp=self._ulp(same[0][1], true),
            )
            for (name, text), same in found.items()
        ]

    def written(self, quantity: str, key: str, true: Array | None = None) -> list[Figure]:
        """Make figures of the textbook's quantity that `_measure` calls `key`."""
        return self.figures(quantity, WRITTEN, lambda one: one.written[key], true)

    def true(self, quantity: str, values: Array) -> Figure:
        """Make the figure of what is right."""
        wide = np.asarray(values).astype(np.float64)
        return Figure(
            quantity=quantity,
            way=TRUTH,
            frameworks=(),
            rows=tuples(wide),
            text=self._text(wide, FORMATS["float64"]),
            ulp=None,
        )

    def _ulp(self, got: Array, true: Array | None) -> float | None:
        if true is None:
            return None
        return float(distance(got.reshape(true.shape), true, self.form).max())
