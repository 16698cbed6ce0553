"""What the generators of pages share."""  # noqa: INP001 -- beside scripts

import itertools
from collections.abc import Iterator, Sequence


def table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Lay out a Markdown table."""
    for row in itertools.chain([headings, ["---"] * len(headings)], rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
