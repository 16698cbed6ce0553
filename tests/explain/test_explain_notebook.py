"""The notebook is valid, has the content of the Markdown, and runs in a new Jupyter kernel."""

import ast
import importlib
import re

import numpy as np
import pytest

from xentx.compare._floats import FORMATS
from xentx.explain import explain, markdown

nbformat = pytest.importorskip("nbformat")

# TensorFlow and Jupyter's clients raise these warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

ROWS, CLASSES = [[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], [1, 2]
OTHERS = ("torch", "jax", "optax", "tensorflow", "scipy", "ml_dtypes")


@pytest.fixture
def books():
    return importlib.import_module("xentx.explain._notebook")


def run(book):
    """Run a notebook. Return the output of each code cell."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    return [
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def block(book, modules):
    """Make importing some modules fail in a notebook."""
    source = "import sys\n" + "\n".join(f"sys.modules[{name!r}] = None" for name in modules)
    book.cells.insert(0, nbformat.v4.new_code_cell(source))
    return book


def test_it_runs_where_every_framework_is_missing(books):
    book = block(books.notebook(explain(ROWS, CLASSES)), OTHERS)
    printed = run(book)
    text = "\n".join(printed)
    for title in ("NumPy and SciPy", "PyTorch", "JAX and Optax", "TensorFlow"):
        if title in "\n".join(cell.source for cell in book.cells):
            assert f"{title}: left out, " in text
    assert "0.39057374" in text


VARIABLES = {
    "naive": ("naive softmax", "p"),
    "m": ("shift", "m"),
    "z": ("shift", "x - m"),
    "total": ("shift", "sum(e^(x - m))"),
    "rest": ("log-sum-exp", "S'"),
    "log_p": ("log-softmax", "(x - m) - log(sum(e^(x - m)))"),
    "gradient": ("gradient", "gradient"),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "row", [[1.0, 2.0, 0.5], [1000.0, 0.0, 0.0], [20.0, 0.0], [-np.inf, 1.0], [np.nan, 1.0]]
)
def test_its_code_computes_the_explanation_s_numbers(books, row, dtype, capsys):
    explanation = explain([row, row[::-1]], [1, 0], dtype=dtype, frameworks=["numpy"])
    names = {}
    state = np.geterr()
    try:
        for cell in books.notebook(explanation).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)  # noqa: S102 -- code of the notebook
    finally:
        np.seterr(**state)
        np.set_printoptions(floatmode="maxprec")
    assert capsys.readouterr().out
    for variable, (key, quantity) in VARIABLES.items():
        step = next(step for step in explanation.steps if step.key == key)
        figure = next(f for f in step.figures if (f.quantity, f.way) == (quantity, "as written"))
        # The notebook computes the gradient from log_p, and the explanation with softmax.
        rounding = 4.0 * FORMATS[dtype].eps if key == "gradient" else 0.0
        np.testing.assert_allclose(
            names[variable].astype(float), figure.rows, rtol=0.0, atol=rounding
        )


def test_it_runs_in_every_framework_and_prints_the_explanation_s_numbers(books, frameworks):
    explanation = explain(ROWS, CLASSES, frameworks=frameworks)
    book = books.notebook(explanation)
    text = "\n".join(run(book))
    assert "left out" not in text
    assert text.count("two steps:") == len(frameworks)
    # Some frameworks print the digits of a float32 and some those of a float64.
    numbers = {np.float32(number) for number in re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", text)}
    for key in ("cross-entropy", "mean"):
        step = next(step for step in explanation.steps if step.key == key)
        for figure in step.figures:
            if figure.way == "xentx.cross_entropy":
                shown = {np.float32(ast.literal_eval(line)) for line in figure.text}
                assert shown <= numbers, figure


def test_it_holds_the_markdown(books):
    explanation = explain(ROWS, CLASSES, frameworks=["numpy"])
    book = books.notebook(explanation)
    nbformat.validate(book)
    page = markdown(explanation)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            assert cell.source in page
    assert [cell.id for cell in book.cells] == [f"cell-{i}" for i in range(len(book.cells))]


def test_it_is_the_same_each_time(books, tmp_path):
    explanation = explain(ROWS, CLASSES, frameworks=["numpy"])
    paths = [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    for path in paths:
        books.write(explanation, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert nbformat.read(paths[0], as_version=4).cells


def test_a_failure_keeps_the_old_file(books, tmp_path, monkeypatch):
    path = tmp_path / "it.ipynb"
    path.write_text("before")
    explanation = explain(ROWS, CLASSES, frameworks=["numpy"])

    def half(book, file):
        file.write("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(nbformat, "write", half)
    with pytest.raises(KeyboardInterrupt):
        books.write(explanation, path)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["it.ipynb"]


def test_the_command_writes_it(tmp_path):
    testing = pytest.importorskip("typer.testing")
    app = importlib.import_module("xentx.cli._app").app
    path = tmp_path / "it.ipynb"
    arguments = ["explain", "--logits", "1,2", "--target", "0", "-f", "numpy", "--notebook"]
    result = testing.CliRunner().invoke(app, [*arguments, str(path)])
    assert result.exit_code == 0
    assert nbformat.read(path, as_version=4).cells
    missing = tmp_path / "nowhere" / "it.ipynb"
    result = testing.CliRunner().invoke(app, [*arguments, str(missing)])
    assert result.exit_code == 2
    assert "--notebook" in result.output
