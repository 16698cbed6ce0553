"""The command: output, exit status, and messages about missing packages."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xentx
from xentx.compare import _evaluate

pytest.importorskip("rich")
testing = pytest.importorskip("typer.testing")

MAIN = "from xentx.cli import main; main()"


def run(*arguments):
    """Run the command in this process."""
    from xentx.cli._app import app

    return testing.CliRunner().invoke(app, arguments)


def run_apart(*arguments, program=MAIN, **environment):
    """Run the command in a new process."""
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_compare_on_numpy_alone():
    done = run("compare", "--framework", "numpy", "--regime", "worked-example")
    assert done.exit_code == 0, done.output
    first = "Comparing 4 losses of numpy on worked-example in float32."
    assert done.output.startswith(first)
    assert "0.390574" in done.output
    assert "passed: xentx:numpy" in done.output


def test_all_losses_have_their_gradients():
    done = run("compare", "--framework", "numpy", "--regime", "worked-example", "--all")
    assert done.exit_code == 0, done.output
    assert "0.390573755" in done.output
    assert "-0.185734" in done.output


def test_the_digits_are_a_default_regime():
    pytest.importorskip("sklearn")
    done = run("compare", "--framework", "numpy", "--no-time")
    assert done.exit_code == 0, done.output
    assert "1797 rows, 10 classes" in done.output


def test_compare_the_binary_loss():
    arguments = ("compare", "-f", "numpy", "-r", "gap", "--no-time", "--loss")
    done = run(*arguments, "binary_cross_entropy", "--corners")
    assert done.exit_code == 0, done.output
    assert "80 rows, 1 class," in done.output
    assert "xentx.binary_cross_entropy" in done.output
    assert run(*arguments, "focal").exit_code == 2
    assert run(*arguments, "binary_cross_entropy", "--html", "page.html").exit_code == 2


def test_json_is_all_that_standard_output_gets():
    done = run_apart("compare", "-f", "numpy", "-r", "gap", "--corners", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert [regime["name"] for regime in report["regimes"]] == ["gap"]
    assert len(report["corners"]) > 50


def test_messages_of_frameworks_are_hidden(frameworks):
    done = run_apart("compare", "-r", "worked-example", "--no-time", "-n", "scipy:*")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    for framework in frameworks:
        assert f"xentx:{framework}" in done.stdout


def test_the_exit_status_is_1_out_of_tolerance(monkeypatch):
    monkeypatch.setitem(_evaluate.LOSS_ULP, "float32", 0.0)
    arguments = ("compare", "-f", "numpy", "-r", "worked-example", "--no-time")
    done = run(*arguments)
    assert done.exit_code == 1
    assert "worked-example float32: xentx:numpy is close" in done.output
    assert run(*arguments, "--fail-on", "none").exit_code == 0


def test_ones_own_data(tmp_path):
    path = tmp_path / "mine.npz"
    logits = np.asarray([[20.0, 0.0], [0.0, 3.0]], np.float64)
    np.savez(path, logits=logits, target=np.asarray([0, 0]))
    done = run("compare", "-f", "numpy", "--logits", str(path), "--json")
    (regime,) = json.loads(done.stdout)["regimes"]
    assert (regime["name"], regime["dtype"], regime["rows"]) == ("mine.npz", "float64", 2)
    assert regime["true_losses"][0] == pytest.approx(2.06115362e-09, rel=1e-8)


def compared(path, *arguments):
    """Compare NumPy's losses on a file. Return the report on it, and the printed output."""
    arguments = ("-f", "numpy", "--no-time", "--logits", str(path), *arguments)
    done = run("compare", *arguments, "--json")
    assert done.exit_code == 0, done.output
    (regime,) = json.loads(done.stdout)["regimes"]
    return regime, run("compare", *arguments).output


def test_ones_own_rows_to_ignore(tmp_path):
    rows = np.asarray([[1.0, 2.0, 0.5], [7.0, 7.0, 7.0], [0.1, 0.5, 2.0]], np.float32)
    np.savez(tmp_path / "mine.npz", logits=rows, target=np.asarray([1, -100, 2]))
    regime, printed = compared(tmp_path / "mine.npz")
    assert regime["rows"] == 2
    assert regime["truth"] == pytest.approx(0.390574, abs=1e-6)  # the worked example
    assert "without 1 of 3 rows, whose target is -100" in " ".join(printed.split())


def test_ones_own_class_axis(tmp_path):
    rows = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
    np.savez(tmp_path / "mine.npz", logits=rows.T[None], target=np.asarray([[1, 2]]))
    regime, _ = compared(tmp_path / "mine.npz", "--axis", "1")
    assert (regime["rows"], regime["classes"]) == (2, 3)
    assert regime["truth"] == pytest.approx(0.390574, abs=1e-6)


def test_rows_that_are_nan_are_counted(tmp_path):
    """NaN rows make the mean NaN, and the report counts them."""
    rows = np.asarray([[1.0, 2.0, 0.5], [np.nan, 0.5, 2.0], [-np.inf] * 3], np.float32)
    np.savez(tmp_path / "mine.npz", logits=rows, target=np.asarray([1, 2, 0]))
    regime, printed = compared(tmp_path / "mine.npz")
    assert regime["nan_rows"] == 2
    assert regime["truth"] == "NaN"
    assert "true mean loss nan (2 of 3 rows are NaN)." in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--regime", "abnormal"), "got 'abnormal'"),
        (("--framework", "caffe"), "got 'caffe'"),
        (("--native", "nope"), "got 'nope'"),
        (("--target", "t.npy"), "--target goes with --logits"),
        (("--axis", "1"), "--axis goes with --logits"),
        (("--ignore-index", "0"), "--ignore-index goes with --logits"),
        (("--logits", "nowhere.npy"), "nowhere.npy: there is no such file or folder"),
        (("--logits", "."), ".: is a folder; expected a file"),
        (("--html", "."), "--html: . is a folder; expected a file"),
    ],
)
def test_a_mistake_is_explained(arguments, text):
    done = run_apart("compare", *arguments, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "Errno" not in done.stderr


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no/where.ipynb", "--notebook: there is no folder no"),
        (".", "--notebook: . is a folder; expected a file"),
    ],
)
def test_a_notebook_that_cannot_be_written(path, text):
    pytest.importorskip("nbformat")
    arguments = ("-x", "1,2", "-t", "0", "-f", "numpy", "--notebook", path)
    done = run_apart("explain", *arguments, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 2
    assert text in done.stderr
    assert "Errno" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--html", "--notebook"])
def test_a_disk_that_is_full_is_explained(option, monkeypatch, tmp_path):
    pytest.importorskip("nbformat" if option == "--notebook" else "plotly")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    command = ("explain", "-x", "1,2", "-t", "0") if option == "--notebook" else ("compare",)
    more = () if option == "--notebook" else ("-r", "worked-example", "--no-corners")
    done = run(*command, "-f", "numpy", *more, option, str(tmp_path / "page"))
    assert done.exit_code == 2
    # The terminal may break lines anywhere.
    assert "no space left on device" in " ".join(done.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_archive_cut_short_is_explained(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, logits=np.zeros((2, 3)), target=np.asarray([0, 1]))
    path.write_bytes(path.read_bytes()[:-40])
    done = run_apart("compare", "--logits", str(path), COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 2
    assert "x.npz: is damaged, or is no .npz file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pickle_is_explained(tmp_path):
    np.save(tmp_path / "x.npy", np.asarray([{}], dtype=object))
    done = run_apart("compare", "--logits", str(tmp_path / "x.npy"), COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 2
    assert "never loaded" in done.stderr


def test_a_framework_that_fails_to_import_is_a_row(tmp_path):
    (tmp_path / "jax.py").write_text("raise RuntimeError('no such driver')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {MAIN}"
    done = run_apart("compare", "-f", "jax", "-f", "numpy", "-r", "worked-example", program=program)
    assert done.returncode == 0, done.stderr
    assert "fails to import: RuntimeError: no such driver" in done.stdout
    assert "passed: xentx:numpy within" in done.stdout


def test_a_framework_that_is_not_installed_is_a_row():
    program = f"import sys; sys.modules['jax'] = None; {MAIN}"
    done = run_apart("compare", "-f", "jax", "-r", "worked-example", program=program)
    assert done.returncode == 0, done.stderr
    assert "pip install jax" in done.stdout


ENGINE = xentx.backends()[0].engine


def test_info():
    done = run("info")
    assert done.exit_code == 0
    for name in ("xentx", "Python", "numpy", "torch", "jax", "tensorflow", ENGINE):
        assert name in done.output


def test_info_says_why_an_engine_is_portable():
    done = run_apart("info", XENTX_ENGINE="portable")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("XENTX_ENGINE=portable is set (hint: unset it") == 1
    assert "numpy is portable" in done.stdout


def test_info_of_a_framework_that_fails_to_import(tmp_path):
    (tmp_path / "jax.py").write_text("raise RuntimeError('no such driver')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {MAIN}"
    done = run_apart("info", program=program)
    assert done.returncode == 0, done.stderr
    # TensorFlow imports Keras, which imports JAX if it is installed.
    assert "jax is not available" in done.stdout
    assert "it fails to be imported: RuntimeError: no such driver" in done.stdout


def test_python_m_xentx_is_the_command():
    missing = "import sys; sys.modules['rich'] = None"
    module = "import runpy; runpy.run_module('xentx', run_name='__main__', alter_sys=True)"
    done = run_apart("--help", program=module)
    assert done.returncode == 0, done.stderr
    assert "Usage: python -m xentx [OPTIONS] COMMAND" in done.stdout
    commands = run_apart("--help").stdout.partition("Commands")[2]
    assert commands in done.stdout
    done = run_apart("info", program=f"{missing}; {module}")
    assert done.returncode == 1
    assert done.stderr == "The xentx command needs rich: pip install 'xentx[cli]'\n"


def test_natives_and_regimes_are_listed():
    assert "torch:F.cross_entropy" in run("natives").output
    assert "confident-10" in run("regimes").output


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_the_command_prints_how_to_install_them(missing):
    done = run_apart("info", program=f"import sys; sys.modules[{missing!r}] = None; {MAIN}")
    assert done.returncode == 1
    assert done.stderr == f"The xentx command needs {missing}: pip install 'xentx[cli]'\n"


def test_help_imports_nothing_that_takes_time():
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print([m for m in ('xentx.compare', 'xentx.natives', 'scipy', "
        "'sklearn', 'torch', 'jax', 'tensorflow', 'keras') if m in sys.modules]))\n" + MAIN
    )
    done = run_apart("--help", program=program)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("[]")
    assert "compare" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "timed", "jobs"),
    [
        ((), True, 1),
        (("--no-time",), False, os.cpu_count()),
        (("--html", "page.html"), False, os.cpu_count()),
        (("--html", "page.html", "--time"), True, 1),
        (("--jobs", "3"), True, 3),
    ],
)
def test_times_are_measured_one_framework_at_a_time(arguments, timed, jobs, monkeypatch, tmp_path):
    if "--html" in arguments:
        pytest.importorskip("plotly")
    from xentx.cli import _compare

    asked = []

    def stop(plan, _, *, jobs):
        asked.append((plan.timed, jobs))
        raise SystemExit(7)

    monkeypatch.setattr(_compare, "compare_apart", stop)
    monkeypatch.chdir(tmp_path)
    assert run("compare", "-f", "numpy", *arguments).exit_code == 7
    assert asked == [(timed, jobs)]
