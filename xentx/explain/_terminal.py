"""An explanation for a terminal."""

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from xentx.explain import _markdown
from xentx.explain._explanation import Explanation, Figure, Step


def render(explanation: Explanation) -> RenderableType:
    """Lay an explanation out.

    Parameters
    ----------
    explanation : Explanation
        What `explain` returned.

    Returns
    -------
    rich renderable
        The steps with their tables; code is left to Markdown and to the notebook.
    """
    parts: list[RenderableType] = [
        Text(explanation.title, style="bold"),
        Text(_markdown.versions(explanation)),
    ]
    for number, step in enumerate(explanation.steps, 1):
        parts.extend(_section(number, step))
    parts.extend(Markdown(part) for part in _markdown.closing(explanation))
    return Group(*parts)


def _section(number: int, step: Step) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(), Rule(f"{number}. {step.title}", align="left")]
    if step.plain:
        parts.append(Padding(Text(step.plain, style="bold"), (0, 2)))
    parts.extend(Markdown(paragraph) for paragraph in step.paragraphs)
    if step.figures:
        parts.append(_table(step.figures))
    if step.notes:
        parts.append(Markdown(_markdown.bullets(step.notes)))
    return parts


def _table(figures: tuple[Figure, ...]) -> Table:
    table = Table(pad_edge=False)
    *left, right = _markdown.headers()
    for header in left:
        table.add_column(header, overflow="fold")
    table.add_column(right, justify="right")
    before = None
    for figure in figures:
        quantity, way, frameworks, text, error = _markdown.columns(figure)
        if before not in (None, quantity):
            table.add_section()
        shown = "" if before == quantity else quantity
        table.add_row(Text(shown), Text(way), frameworks, Text("\n".join(text)), error)
        before = quantity
    return table
