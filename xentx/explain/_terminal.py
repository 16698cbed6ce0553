"""An explanation for a terminal: a summary, or every step with its table."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from xentx.explain import _markdown
from xentx.explain._explanation import Explanation, Figure, Step
from xentx.explain._rows import TRUTH, short

# The quantities of the summary: the step, what it calls the quantity, the name and the formula.
_SUMMARY = (
    ("naive softmax", "p", "softmax", "p[k] = e^x[k] / sum(e^x)"),
    ("log-sum-exp", "lse", "log-sum-exp", "lse = log(sum(e^x))"),
    ("log-softmax", "log_p", "log-softmax", "log_p[k] = x[k] - lse"),
    ("cross-entropy", "loss", "loss", "-log_p[t]"),
    ("gradient", "gradient", "gradient", "p - one_hot(t)"),
    ("mean", "mean", "mean loss", "sum(loss) / N"),
)


def summary(explanation: Explanation) -> RenderableType:
    """Lay out the true values of the steps, and how accurate each computation of the loss is.

    Parameters
    ----------
    explanation : Explanation
        What `explain` returned.

    Returns
    -------
    rich renderable
        A table with a row for each quantity, the notes of all steps, and the errors.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("quantity", "formula", "value"):
        table.add_column(header, overflow="fold")
    for quantity, formula, values in _true_values(explanation):
        table.add_row(quantity, Text(formula), Text("\n".join(values)))
    notes = [note for step in explanation.steps if step.key != "choice" for note in step.notes]
    errors = [note for step in explanation.steps if step.key == "choice" for note in step.notes]
    left_out = [f"`{item.name}` was left out: {item.reason}" for item in explanation.left_out]
    parts: list[RenderableType] = [
        Text(explanation.title, style="bold"),
        Text(_markdown.versions(explanation)),
        Text(),
        table,
    ]
    if notes:
        parts.append(Markdown(_markdown.bullets(notes)))
    parts += [Text(), Text("Largest error of each way to compute the loss:")]
    parts += [Markdown(_markdown.bullets([*errors, *left_out])), Text()]
    parts.append(Text("--full prints every step, with the results of each framework."))
    return Group(*parts)


def _true_values(explanation: Explanation) -> Iterator[tuple[str, str, list[str]]]:
    """Give each quantity of the summary: its name, its formula and a line for each row."""
    steps = {step.key: step for step in explanation.steps}
    rows = [[float(x) for x in row] for row in explanation.logits]
    yield "logits", "x", [_listed(row) for row in rows]
    yield "target", "t", [str(t) for t in explanation.target]
    for key, quantity, name, formula in _SUMMARY:
        if key in steps:
            (true,) = (f for f in steps[key].figures if (f.quantity, f.way) == (quantity, TRUTH))
            yield name, formula, [_listed(row) for row in true.rows]


def _listed(row: Sequence[float]) -> str:
    texts = [short(value + 0.0) for value in row]  # without the sign of a zero
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def render(explanation: Explanation) -> RenderableType:
    """Lay out every step with its table.

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
