"""``xentx compare --html``: its measurements and output, and errors before it measures."""

import subprocess
import sys

import pytest

testing = pytest.importorskip("typer.testing")

WITHOUT = """
import sys
sys.modules[{module!r}] = None
from xentx.cli import main
main()
"""


def run(*arguments):
    from xentx.cli._app import app

    return testing.CliRunner().invoke(app, ["compare", "-f", "numpy", "-n", "numpy:*", *arguments])


def test_it_writes_a_page_with_the_corners(tmp_path):
    path = tmp_path / "report.html"
    done = run("-r", "gap", "--html", str(path))
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"\nwrote {path}: passed\n")
    text = path.read_text("utf-8")
    assert 'id="corner-target-minus-one"' in text
    assert 'id="confidence"' in text


def test_json_together_with_html(tmp_path):
    done = run("-r", "gap", "--json", "--html", str(tmp_path / "report.html"))
    assert done.stdout.startswith("{")
    assert (tmp_path / "report.html").exists()


def test_a_missing_folder_is_an_error_before_measuring(tmp_path, monkeypatch):
    from xentx.cli import _compare

    monkeypatch.setattr(_compare, "compare_apart", lambda *_, **__: pytest.fail("it measured"))
    done = run("--html", str(tmp_path / "nowhere" / "report.html"))
    assert done.exit_code == 2
    assert "there is no folder" in done.output


@pytest.mark.parametrize("module", ["jinja2", "plotly"])
def test_missing_packages_are_an_error_before_measuring(tmp_path, module):
    program = WITHOUT.format(module=module)
    command = [sys.executable, "-P", "-c", program, "compare", "--html", str(tmp_path / "x.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'xentx[report]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
