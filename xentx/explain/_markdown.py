"""An explanation as Markdown, with formulas in TeX."""

from collections.abc import Iterable

from xentx.explain._explanation import Explanation, Figure, Snippet, Step

_HEADERS = ("quantity", "computed by", "in", "value", "error in ULP")


def columns(figure: Figure) -> tuple[str, str, str, tuple[str, ...], str]:
    """Return the texts of the columns for a figure. The value has a line for each row."""
    error = "" if figure.ulp is None else f"{figure.ulp:.3g}"
    return figure.quantity, figure.way, ", ".join(figure.frameworks), figure.text, error


def headers() -> tuple[str, ...]:
    """Return the names of the columns."""
    return _HEADERS


def versions(explanation: Explanation) -> str:
    """Return the sentence that names the frameworks and their versions."""
    named = ", ".join(f"{name} {version}" for name, version in explanation.versions)
    return f"Computed in {explanation.dtype} with {named}."


def markdown(explanation: Explanation) -> str:
    """Render an explanation.

    Parameters
    ----------
    explanation : Explanation
        What `explain` returned.

    Returns
    -------
    str
        Markdown, with formulas between dollar signs and the steps' code in fences.
    """
    parts = [opening(explanation)]
    for number, step in enumerate(explanation.steps, 1):
        parts.append(section(number, step))
        parts.extend(f"```python\n{code}\n```" for code in _code(step))
    parts.extend(closing(explanation))
    return "\n\n".join(parts) + "\n"


def opening(explanation: Explanation) -> str:
    """Render the part before the steps."""
    return f"# {explanation.title}\n\n{versions(explanation)}"


def section(number: int, step: Step) -> str:
    """Render a step without its code."""
    parts = [f"## {number}. {step.title}"]
    if step.tex:
        parts.append(f"$$\n{step.tex}\n$$")
    parts.extend(step.paragraphs)
    if step.figures:
        parts.append(_table(step.figures))
    if step.notes:
        parts.append(bullets(step.notes))
    return "\n\n".join(parts)


def closing(explanation: Explanation) -> list[str]:
    """Render the part after the steps."""
    parts: list[str] = []
    if explanation.corrections:
        parts.append("## Rounding in the article")
        parts.append(bullets(correction.text for correction in explanation.corrections))
    if explanation.left_out:
        parts.append("## Left out")
        parts.append(bullets(f"`{item.name}`: {item.reason}" for item in explanation.left_out))
    return parts


def bullets(lines: Iterable[str]) -> str:
    """Render a list."""
    return "\n".join(f"- {line}" for line in lines)


def _code(step: Step) -> list[str]:
    return [code for code in (step.code, *map(_joined, step.snippets)) if code]


def _joined(snippet: Snippet) -> str:
    return f"# {snippet.framework}\n{snippet.imports}\n\n{snippet.body}"


def _table(figures: tuple[Figure, ...]) -> str:
    lines = [_row(_HEADERS), _row(["---"] * 4 + ["---:"])]
    for figure in figures:
        quantity, way, frameworks, text, error = columns(figure)
        value = "<br>".join(f"`{line}`" for line in text)
        lines.append(_row((f"`{quantity}`", f"`{way}`", frameworks, value, error)))
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
