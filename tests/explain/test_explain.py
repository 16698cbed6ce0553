"""`xentx explain`: the numbers of each step, the notes on them, and the output formats."""

import importlib
import io
import math
import re

import numpy as np
import pytest

from xentx.compare import truth
from xentx.explain import Correction, explain, markdown
from xentx.explain._explanation import shortest

# TensorFlow raises these warnings when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROWS, CLASSES = [[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], [1, 2]


@pytest.fixture(scope="module")
def article():
    """The worked example in every requested framework."""
    from xentx.testing import requested_frameworks

    return explain(ROWS, CLASSES, frameworks=requested_frameworks())


def step(explanation, key):
    return next(step for step in explanation.steps if step.key == key)


def values(explanation, key, quantity, way):
    """The rows that each framework has for a quantity."""
    found = {}
    for figure in step(explanation, key).figures:
        if (figure.quantity, figure.way) == (quantity, way):
            found |= dict.fromkeys(figure.frameworks or ("truth",), np.asarray(figure.rows))
    return found


def notes(explanation, key):
    return "\n".join(step(explanation, key).notes)


# The worked example.


EXACT = {
    ("log-sum-exp", "lse"): [[2.464369], [2.316779]],
    ("naive softmax", "p"): [[0.231224, 0.628532, 0.140244], [0.108960, 0.162549, 0.728492]],
    ("log-softmax", "log_p"): [
        [-1.464369, -0.464369, -1.964369],
        [-2.216779, -1.816779, -0.316779],
    ],
    ("nll", "loss"): [[0.464369], [0.316779]],
    ("gradient", "gradient"): [[0.231224, -0.371468, 0.140244], [0.108960, 0.162549, -0.271508]],
    ("mean", "mean"): [[0.390574]],
    ("mean", "sum"): [[0.781147]],
}


@pytest.mark.parametrize("key", EXACT, ids=lambda key: key[1])
def test_the_truth_of_the_worked_example(article, key):
    got = values(article, *key, "truth")["truth"]
    # 0.1 is not a float32 number, which changes the true value by less than this.
    np.testing.assert_allclose(got, EXACT[key], atol=6e-7)


@pytest.mark.parametrize(
    ("key", "quantity", "way"),
    [
        ("naive softmax", "p", "as written"),
        ("log-sum-exp", "m + log1p(S')", "as written"),
        ("log-softmax", "log_p", "xentx.log_softmax"),
        ("cross-entropy", "two steps", "xentx.nll_loss(xentx.log_softmax)"),
        ("cross-entropy", "one step", "xentx.cross_entropy"),
        ("gradient", "gradient", "as written"),
        ("gradient", "gradient", "xentx.cross_entropy"),
        ("mean", "mean", "xentx.cross_entropy"),
    ],
)
def test_every_framework_has_every_step(article, frameworks, key, quantity, way):
    truths = {"one step": "loss", "two steps": "loss", "m + log1p(S')": "lse"}
    true = values(article, key, truths.get(quantity, quantity), "truth")["truth"]
    got = values(article, key, quantity, way)
    assert set(got) == set(frameworks)
    for array in got.values():
        np.testing.assert_allclose(array, true, rtol=1e-6)


def test_each_framework_s_own_two_steps_and_one_step(article, frameworks):
    figures = step(article, "cross-entropy").figures
    own = {
        (figure.quantity, figure.way)
        for figure in figures
        if ":" in figure.way and np.allclose(figure.rows, [[0.464369], [0.316779]], atol=6e-7)
    }
    expected = {
        "numpy": {("two steps", "scipy:log_softmax + gather")},
        "torch": {
            ("two steps", "torch:F.log_softmax + F.nll_loss"),
            ("one step", "torch:F.cross_entropy"),
        },
        "jax": {
            ("two steps", "jax:nn.log_softmax + take_along_axis"),
            ("one step", "optax:softmax_cross_entropy_with_integer_labels"),
        },
        "tensorflow": {
            ("two steps", "tf:nn.log_softmax + gather"),
            ("one step", "tf:nn.sparse_softmax_cross_entropy_with_logits"),
        },
    }
    left_out = {item.name for item in article.left_out}
    wanted = {pair for name in frameworks for pair in expected[name]}
    assert own == {pair for pair in wanted if pair[1] not in left_out}


def test_the_article_s_rounding_is_corrected(article):
    assert [(c.printed, c.rounded) for c in article.corrections] == [
        ("-1.47", "-1.46"),
        ("-0.47", "-0.46"),
        ("-1.97", "-1.96"),
        ("0.47", "0.46"),
        ("0.75", "0.39"),
    ]
    assert all(c.rounded != c.printed for c in article.corrections)
    assert "rounded to 2 decimals this is 0.39, not 0.75" in article.corrections[-1].text


def test_other_rows_are_not_the_article_s():
    assert len(explain(ROWS[:1], CLASSES[:1], frameworks=["numpy"]).corrections) == 4
    assert not explain(ROWS[:1], [0], frameworks=["numpy"]).corrections
    assert not explain([[1.0, 2.0, 0.25]], [1], frameworks=["numpy"]).corrections


def test_correct_figures_are_described_as_correct():
    right = Correction(quantity="it", printed="0.46", value=0.464368784)
    assert right.text.endswith("this is 0.46, right.")


# Overflow, underflow and lost digits.


def test_the_naive_softmax_overflows(frameworks):
    found = explain([[1000.0, 0.0, 0.0]], [0], frameworks=frameworks)
    for array in values(found, "naive softmax", "p", "as written").values():
        assert math.isnan(array[0, 0])
    text = notes(found, "naive softmax")
    assert "exp overflows float32 above 88.72284" in text
    assert "inf / inf is nan" in text
    for array in values(found, "cross-entropy", "one step", "xentx.cross_entropy").values():
        assert array[0, 0] == 0.0  # exp(-1000) is smaller than any float32 number
    assert "fails" in notes(found, "choice")


@pytest.mark.parametrize(
    ("dtype", "logit", "limit"),
    [("float16", 12.0, "11.08987"), ("bfloat16", 89.0, "88.7"), ("float64", 710.0, "709.7827")],
)
def test_where_exp_overflows_depends_on_the_dtype(dtype, logit, limit):
    found = explain([[logit, 0.0]], [0], dtype=dtype, frameworks=["numpy"])
    assert f"exp overflows {dtype} above {limit}" in notes(found, "naive softmax")
    assert math.isnan(values(found, "naive softmax", "p", "as written")["numpy"][0, 0])


def test_all_exponentials_underflow():
    found = explain([[-1000.0, -1001.0]], [0], frameworks=["numpy"])
    assert "0 / 0 is nan" in notes(found, "naive softmax")


def test_the_sum_alone_overflows():
    found = explain([[88.5, 88.5, 88.5]], [0], frameworks=["numpy"])
    assert "their sum overflows" in notes(found, "naive softmax")


def test_the_target_underflows():
    found = explain([[0.0, 200.0 - 120.0, -120.0]], [2], frameworks=["numpy"])
    assert "the target's probability rounds to 0, and -log 0 is inf" in notes(
        found, "naive softmax"
    )


def test_a_confident_row_shows_the_native_s_0_and_the_true_value(frameworks):
    found = explain([[20.0, 0.0]], [0], frameworks=frameworks)
    true = 2.061153620314381e-09
    cross_entropy = step(found, "cross-entropy")
    own = [figure for figure in cross_entropy.figures if ":" in figure.way]
    assert own
    for figure in own:
        assert figure.rows == ((0.0,),)
        assert figure.ulp > 1e6
        assert f"`{figure.way}`" in notes(found, "cross-entropy")
    assert "The true loss is 2.061154e-09" in notes(found, "cross-entropy")
    for array in values(found, "cross-entropy", "one step", "xentx.cross_entropy").values():
        assert array[0, 0] == pytest.approx(true, rel=2e-7)
    assert "1 + S' rounds to 1" in notes(found, "log-sum-exp")
    assert "16.63553" in notes(found, "log-sum-exp")
    assert "the row does not sum to 0" in notes(found, "gradient")
    sums = values(found, "gradient", "sum of the row", "xentx.cross_entropy")
    assert all(array[0, 0] == 0.0 for array in sums.values())


def test_an_ordinary_row_has_no_such_notes(article):
    assert not notes(article, "cross-entropy")
    assert not notes(article, "gradient")
    assert not notes(article, "log-sum-exp")
    assert "The textbook formula works for row 0" in notes(article, "naive softmax")


# Special values and errors.


def test_minus_infinity_elsewhere_and_at_the_target():
    elsewhere = explain([[1.0, -math.inf, 0.0]], [0], frameworks=["numpy"])
    assert "the logit of class 1 is -inf" in notes(elsewhere, "logits")
    assert "adds nothing to the loss" in notes(elsewhere, "logits")
    at_target = explain([[1.0, -math.inf, 0.0]], [1], frameworks=["numpy"])
    assert "the loss is +inf, and the gradient is finite" in notes(at_target, "logits")
    gradient = values(at_target, "gradient", "gradient", "xentx.cross_entropy")["numpy"]
    np.testing.assert_allclose(gradient, [[0.731059, -1.0, 0.268941]], atol=1e-6)


@pytest.mark.parametrize("row", [[1.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_rows_without_probabilities(row):
    found = explain([row], [0], frameworks=["numpy"])
    assert "its loss and gradient are NaN" in notes(found, "logits")
    assert markdown(found)


def test_numbers_that_the_dtype_does_not_have(article):
    assert "It is rounded to 0.10000000149011612" in notes(article, "logits")
    assert not notes(explain(ROWS, CLASSES, dtype="float64", frameworks=["numpy"]), "logits")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1.0, 2.0]], [2]), IndexError, "target: got 2 at position 0; expected 0 <= target < 2"),
        (([[1.0, 2.0]], [-1]), IndexError, "target: got -1 at position 0"),
        (([[1.0, 2.0]], [-100]), ValueError, "which marks a row as ignored"),
        (([[1.0, 2.0], [1.0]], [0, 0]), ValueError, "got rows of [2, 1] classes"),
        (([[1.0, 2.0]], [0, 1]), ValueError, "got 2 for 1 rows; expected one for each row"),
        (([], []), ValueError, "expected rows of one length"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=re.escape(words)):
        explain(*arguments, frameworks=["numpy"])


def test_unknown_names():
    with pytest.raises(ValueError, match=r"dtype: got 'float8'; expected one of float16"):
        explain(ROWS, CLASSES, dtype="float8")
    with pytest.raises(ValueError, match=r"framework: got 'mxnet'; expected some of numpy"):
        explain(ROWS, CLASSES, frameworks=["mxnet"])


def test_a_broken_framework_is_skipped_or_raises_if_requested(monkeypatch):
    steps = importlib.import_module("xentx.explain._steps")
    measure = steps.measure

    def broken(ways, case):
        if ways.framework != "numpy":
            msg = "libbroken.so: cannot open"
            raise OSError(msg)
        return measure(ways, case)

    monkeypatch.setattr(steps, "measure", broken)
    found = explain(ROWS, CLASSES)
    assert [name for name, _ in found.versions] == ["numpy"]
    assert {item.name for item in found.left_out} >= {"torch", "jax", "tensorflow"}
    assert "OSError: libbroken.so: cannot open" in markdown(found)
    with pytest.raises(ImportError, match="framework: torch cannot be imported: OSError"):
        explain(ROWS, CLASSES, frameworks=["torch"])


# Numbers and output formats.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_digits_read_back_as_the_same_number(dtype):
    from xentx.compare._floats import FORMATS

    rng = np.random.default_rng(0)
    for value in rng.normal(0.0, 10.0, 200).astype(dtype):
        text = shortest(float(value), FORMATS[dtype])
        assert np.dtype(dtype).type(text) == value
        assert len(text) <= len(repr(float(str(value))))


def test_ulps_are_those_of_the_truth(article):
    logits = np.asarray(ROWS, np.float32)
    true = truth.cross_entropy(logits, np.asarray(CLASSES), reduction="none").value
    for figure in step(article, "cross-entropy").figures:
        if figure.way != "truth":
            error = np.abs(np.asarray(figure.rows)[:, 0] - true) / np.spacing(np.float32(true))
            assert figure.ulp == pytest.approx(float(error.max()), rel=1e-3)


NUMBER = re.compile(r"-?(?:\d+\.\d+(?:e[-+]\d+)?|inf|nan)")


def test_markdown_and_terminal_show_the_same_numbers(article):
    console = pytest.importorskip("rich.console").Console(width=400, file=io.StringIO())
    console.print(importlib.import_module("xentx.explain._terminal").render(article))
    terminal, page = console.file.getvalue(), markdown(article)
    page = re.sub(r"```python.*?```", "", page, flags=re.DOTALL)
    assert sorted(NUMBER.findall(terminal)) == sorted(NUMBER.findall(page))
    for figure in (figure for one in article.steps for figure in one.figures):
        for line in figure.text:
            assert line in terminal
            assert line in page
    for note in (note for one in article.steps for note in one.notes):
        assert note in page


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_summary_has_the_true_values(article, width):
    console = pytest.importorskip("rich.console").Console(width=width, file=io.StringIO())
    console.print(importlib.import_module("xentx.explain._terminal").summary(article))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    for words in ("[0.2312239, 0.6285317, 0.1402444]", "0.3905737", "--full prints every step"):
        assert any(words in line for line in lines)
    assert max(map(len, lines)) <= width
    assert len(lines) < 50


def test_tables_of_markdown_are_whole(article):
    lines = [line for line in markdown(article).splitlines() if line.startswith("|")]
    assert lines
    assert {line.count("|") for line in lines} == {6}


@pytest.fixture
def invoke():
    testing = pytest.importorskip("typer.testing")
    app = importlib.import_module("xentx.cli._app").app
    return lambda *args: testing.CliRunner().invoke(app, ["explain", "-f", "numpy", *args])


@pytest.mark.parametrize(
    "rows",
    [
        ["--logits", "1.0,2.0,0.5;0.1,0.5,2.0", "--target", "1;2"],
        ["--logits", "1.0,2.0,0.5", "--logits", "0.1,0.5,2.0", "--target", "1", "--target", "2"],
        ["--logits", "1.0, 2.0, 0.5; 0.1, 0.5, 2.0;", "--target", "1,2"],
    ],
)
def test_the_command_takes_several_rows(invoke, rows):
    result = invoke(*rows, "--markdown")
    assert result.exit_code == 0
    assert result.stdout == markdown(explain(ROWS, CLASSES, frameworks=["numpy"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--logits", "1,2", "--target", "2"], "got 2 at position 0"),
        (["--logits", "1,b", "--target", "0"], "--logits: got 'b'; expected a number"),
        (["--logits", "1,2", "--target", "0.5"], "--target: got '0.5'; expected a class index"),
        (["--logits", "1,2", "--target", "0", "-f", "mxnet"], "got 'mxnet'"),
    ],
)
def test_the_command_s_errors(invoke, arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", "").split())


def test_the_command_prints_a_summary_or_every_step(invoke):
    row = ("--logits", "1.0,2.0,0.5", "--target", "1")
    summary, full = invoke(*row).stdout, invoke(*row, "--full").stdout
    assert "CrossEntropy = LogSoftmax + NLL" not in summary
    assert "CrossEntropy = LogSoftmax + NLL" in full


def test_the_command_takes_minus_infinity(invoke):
    result = invoke("--logits", "-inf,1", "--target", "1")
    assert result.exit_code == 0
    assert "the logit of class 0 is -inf" in result.stdout
