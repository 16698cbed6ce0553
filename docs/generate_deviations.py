"""Write docs/deviations.md: where the results of each framework's own losses differ from xentx's.

The results on the page come from calling the installed losses. Run this script with the versions
that pyproject.toml pins, whenever a version, a record of a loss or a corner case changes::

    python docs/generate_deviations.py
"""  # noqa: INP001 -- a script

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _markdown import table

from xentx.compare import BINARY_CORNERS, CORNERS, Plan, Report, compare, words
from xentx.compare.report import CornerReport, Loss

PAGE = Path(__file__).with_name("deviations.md")
COMMAND = "python docs/generate_deviations.py"
FRAMEWORKS = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
}

AGREES, DEVIATES, NOT_ASKED = "=", "**≠**", ""

HEAD = """\
# Deviations

<!-- Written by `{command}`. Don't edit. -->

This page shows the results of the frameworks' own losses in {corners} corner cases, {binary} of
them of binary cross-entropy. It compares them with [the rules of xentx](#rules). `{command}`
writes the page. The versions are {versions}.

Each cell covers the losses of a framework that support the case:

| cell | meaning |
| --- | --- |
| `=` | All losses follow the rule. |
| **≠** | No loss follows the rule. |
| 2 of 7 | 2 of 7 losses do not follow the rule. |
| empty | No loss of the framework supports the case. |

Numbers are rounded to a few digits. The gradient is shown if it differs. Traced values are not
known to a compiler. If an error depends on values, xentx's rule for compiled losses is NaN for
loss and gradient instead. Losses marked `[jit]` and `[xla]` are compared with that rule.
"""


def frameworks(report: Report) -> dict[str, list[Loss]]:
    """Group the losses by framework, without xentx's own and without bad examples."""
    return {
        name: [
            loss
            for loss in report.losses
            if loss.framework == name and not loss.is_xentx and not loss.caveat
        ]
        for name in FRAMEWORKS
    }


def mark(corner: CornerReport, losses: Sequence[Loss]) -> str:
    """Say how many of a framework's losses deviate in a corner case."""
    answers = words.answers(corner, losses)
    asked = sum(len(answer.losses) for answer in answers)
    deviating = sum(len(answer.losses) for answer in answers if answer.deviates)
    if not asked:
        return NOT_ASKED
    if deviating in (0, asked):
        return DEVIATES if deviating else AGREES
    return f"{deviating} of {asked}"


def groups_of(report: Report) -> dict[str, list[CornerReport]]:
    """Group a report's corner cases."""
    by_group = itertools.groupby(report.corners, key=lambda corner: corner.group)
    return {name: list(corners) for name, corners in by_group}


def summary(report: Report, groups: dict[str, list[CornerReport]]) -> Iterator[str]:
    """Count the cases in which one of a framework's losses deviates."""

    def count(corners: Sequence[CornerReport], losses: Sequence[Loss]) -> str:
        marks = [mark(corner, losses) for corner in corners]
        asked = [one for one in marks if one != NOT_ASKED]
        return f"{sum(one != AGREES for one in asked)} of {len(asked)}" if asked else NOT_ASKED

    def row(name: str, corners: Sequence[CornerReport]) -> Sequence[str]:
        by_framework = frameworks(report).values()
        return [name, *(count(corners, losses) for losses in by_framework)]

    yield "## Summary"
    yield ""
    yield (
        "The number of cases in which at least one of a framework's losses deviates, of the cases "
        "that the framework supports."
    )
    yield ""
    rows = [row(f"[{name}](#{slug(name)})", corners) for name, corners in groups.items()]
    yield from table(["", *FRAMEWORKS.values()], iter([*rows, row("all", report.corners)]))


def slug(title: str) -> str:
    """Return what GitHub makes of a heading in a link."""
    return title.lower().replace(" ", "-")


def code(text: str) -> str:
    """Set text as code."""
    return f"`{text}`"


def overview(report: Report, corners: Sequence[CornerReport]) -> Iterator[str]:
    """Lay out a group's matrix, each case linked to its deviations."""

    def row(corner: CornerReport) -> Sequence[str]:
        marks = [mark(corner, losses) for losses in frameworks(report).values()]
        plain = not set(marks) - {AGREES, NOT_ASKED}
        title = corner.title if plain else f"[{corner.title}](#{corner.name})"
        return [title, code(words.rule(corner)), *marks]

    yield from table(["case", "xentx", *FRAMEWORKS.values()], map(row, corners))


def details(report: Report, corner: CornerReport) -> Iterator[str]:
    """List a case's deviations, if there are any."""
    # xentx's own are among them: the page would not hide it if one broke its rule.
    own = [loss for loss in report.losses if loss.is_xentx]
    found = [
        (name, answer)
        for name, losses in {"xentx": own, **frameworks(report)}.items()
        for answer in words.answers(corner, losses)
        if answer.deviates
    ]
    if not found:
        return
    expected, traced = words.rule(corner), words.rule(corner, traced=True)
    options = ", ".join(f"{name}={value}" for name, value in corner.options.items())
    given = (
        f"logits {code(flat(corner.logits))} in {corner.logits_dtype}",
        f"target {code(flat(corner.target))} in {corner.target_dtype}",
        code(flat(options)),
    )
    yield f'#### <a id="{corner.name}"></a>{corner.title}'
    yield ""
    yield f"Given {', '.join(given)}."
    yield ""
    under = f"; traced: {code(traced)}" if traced != expected else ""
    yield f"xentx: {code(expected)}{under}."
    yield ""
    rows = (
        (
            FRAMEWORKS.get(name, name),
            code(answer.text) + (f", {answer.changes}" if answer.changes else ""),
            ", ".join(map(code, words.names(answer.losses))),
        )
        for name, answer in found
    )
    yield from table(["", "result", "losses"], rows)


def flat(text: str) -> str:
    """Put what NumPy printed on several lines on one."""
    return " ".join(text.split()).replace("[ ", "[").replace(" ]", "]")


def rules(corners: Sequence[CornerReport]) -> Iterator[str]:
    """State each rule that a case holds losses to."""
    yield "## Rules"
    yield ""
    for rule in dict.fromkeys(corner.rule for corner in corners):
        yield f"- {rule}"


def render(report: Report, binary: Report) -> str:
    """Write the page of a comparison in all corner cases.

    Parameters
    ----------
    report
        What was found.
    binary
        What was found of binary cross-entropy.

    Returns
    -------
    str
        Markdown, the same on every machine with the same versions.
    """
    versions = ", ".join(
        f"{library.name} {(library.version or '').partition('+')[0]}"
        + (f" on {', '.join(report.keras_backends)}" if library.name == "keras" else "")
        for library in report.libraries
    )
    every = (*report.corners, *binary.corners)
    lines = [
        HEAD.format(
            command=COMMAND, corners=len(every), binary=len(binary.corners), versions=versions
        )
    ]
    lines += summary(report, groups_of(report))
    for one in (report, binary):
        for name, corners in groups_of(one).items():
            lines += [f"## {name.capitalize()}", ""]
            lines += overview(one, corners)
            lines += itertools.chain.from_iterable(details(one, corner) for corner in corners)
    lines += rules(every)
    return "\n".join(lines) + "\n"


def generate(progress: Callable[[int, int, str], None] = lambda *_: None) -> str:
    """Ask every installed loss every corner case and write the page.

    Raises
    ------
    RuntimeError
        If a framework is missing: the page is about all of them.
    """
    plan = Plan(regimes=(), corners=tuple(CORNERS.values()), timed=False)
    report = compare(plan, progress)
    missing = [library.name for library in report.libraries if library.problem is not None]
    if missing:
        msg = f"the page needs every framework; missing: {', '.join(missing)}"
        raise RuntimeError(msg)
    corners = tuple(BINARY_CORNERS.values())
    return render(
        report, compare(replace(plan, loss="binary_cross_entropy", corners=corners), progress)
    )


def main() -> None:
    """Write the page in its place."""

    def progress(done: int, total: int, what: str) -> None:
        sys.stderr.write(f"\r\x1b[K{done}/{total} {what}")

    PAGE.write_text(generate(progress), encoding="utf-8")
    sys.stderr.write(f"\r\x1b[K{PAGE}\n")


if __name__ == "__main__":
    main()
