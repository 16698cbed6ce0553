"""How Sphinx builds these pages: offline, and without a warning. ``nox -s docs`` runs it."""  # noqa: INP001 -- a script of Sphinx's

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from xentx.cli._app import app as command

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]

# For notebooks and commands, which run in processes of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow says at each start that it is on
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

project = PROJECT["name"]
author = project_copyright = PROJECT["authors"][0]["name"]
release = version = importlib.metadata.version("xentx")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.programoutput",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "reference/generated/command.md"]  # which command.md includes

default_role = "autolink"  # what docstrings have between single backticks
smartquotes = False  # an option's "mean" and --html are typed as they stand

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3  # which the links of the generated pages count on, as on GitHub

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove-warn"

autodoc_typehints = "none"  # the docstrings say more: an array's type is Any
numpydoc_show_class_members = False

# A build reads no network, and an inventory that can't be fetched would be a warning. So links to
# other projects are made where somebody asks for them, as Read the Docs does of itself.
if "READTHEDOCS" in os.environ or "XENTX_INTERSPHINX" in os.environ:
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
    }

copybutton_exclude = ".linenos, .gp, .go"
programoutput_prompt_template = "$ {command}\n{output}"

html_theme = "furo"
html_title = "xentx"
html_static_path = ["_static"]
html_css_files = ["xentx.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e6e", "color-brand-content": "#0b6e6e"},
    "dark_css_variables": {"color-brand-primary": "#5cc8c0", "color-brand-content": "#5cc8c0"},
}


def render_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers lay out themselves: no script, and no network."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        msg = f"{translator.builder.current_docname}: {error}: {node.astext()}"
        raise ExtensionError(msg) from error
    # Browsers leave no space between a function and its argument, and some around absolute values.
    formula = formula.replace(
        "&ApplyFunction;</mo>", '&ApplyFunction;</mo><mspace width="0.17em"/>'
    )
    formula = re.sub(
        r"<mo[^>]*>\|</mo>", '<mo stretchy="false" lspace="0" rspace="0">|</mo>', formula
    )
    translator.body.append(f'<div class="math">{formula}</div>\n' if block else formula)
    raise nodes.SkipNode


def write_command_reference(_: Sphinx) -> None:
    """Write the reference of the command from its options, for reference/command.md to include."""
    group = typer.main.get_command(command)
    text = typer.cli.get_docs_for_click(
        obj=group, ctx=typer.Context(group, info_name="xentx"), name="xentx"
    )
    text = text[text.index("\n## ") :]  # the commands, without a list of them that is cut off
    target = HERE / "reference" / "generated" / "command.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, "utf-8")


def label_deviations(_: Sphinx, page: str, source: list[str]) -> None:
    """Make labels of the anchors in the headings of deviations.md, which are GitHub's way."""
    if page == "deviations":
        text = re.sub(r'^#### <a id="(.*?)"></a>', r"(\1)=\n### ", source[0], flags=re.MULTILINE)
        source[0] = f"---\ntocdepth: 2\n---\n{text}"


def setup(app: Sphinx) -> None:
    """Add what no extension does."""
    app.add_html_math_renderer("mathml", (render_math, None), (render_math, None))
    app.connect("builder-inited", write_command_reference, priority=100)
    app.connect("source-read", label_deviations)
