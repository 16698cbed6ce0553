"""The page of a report, and its file."""

import os
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from xentx.compare import words
from xentx.compare.html import _view
from xentx.compare.report import Report


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xentx.compare.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # JSON has no NaN. Numbers that can be NaN are text.
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    environment.filters |= {
        "array": words.array,
        "count": words.count,
        "nan_rows": words.nan_rows,
        "number": words.number,
        "names": words.names,
    }
    return environment


def _asset(name: str) -> Markup:
    """Read a file of the package that is inserted without escaping."""
    text = resources.files(__package__).joinpath("templates", name).read_text("utf-8")
    return Markup(text)  # noqa: S704 -- xentx's own


def render_html(report: Report) -> str:
    """Lay a report out as one self-contained HTML page.

    Parameters
    ----------
    report
        The results of a comparison.

    Returns
    -------
    str
        The page, with its styles, its script, Plotly and the data inside.

    Examples
    --------
    >>> from xentx.compare import Plan, compare
    >>> report = compare(Plan(frameworks=("numpy",), regimes=(), timed=False))
    >>> render_html(report).splitlines()[0]
    '<!doctype html>'
    """
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            view=_view.view(report),
            report=report,
            css=_asset("report.css"),
            script=_asset("report.js"),
            plotly=Markup(get_plotlyjs()),  # noqa: S704 -- the installed Plotly's own
        )
    )


def write_html(report: Report, path: Path) -> None:
    """Write the page of a report. A failure leaves no partial file.

    The page is written to a temporary file, which is renamed when it is complete.

    Parameters
    ----------
    report
        The results of a comparison.
    path
        The file. An existing file is replaced.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    page = render_html(report)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
