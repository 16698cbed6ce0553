"""What the documents say is run: the README's examples and commands, and the docstrings'."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import xentx
from xentx.testing import requested_frameworks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TOOLS = re.findall(r"^    (xentx .*)$", README, flags=re.MULTILINE)
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, flags=re.DOTALL)


def framework_of(block):
    return next((f for f in ("torch", "jax", "tensorflow") if f"import {f}" in block), "numpy")


def run(test):
    runner = doctest.DocTestRunner(verbose=False)
    output = []
    runner.run(test, out=output.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)
    return len(test.examples)


def test_readme_has_an_example_in_each_framework():
    assert {framework_of(block) for block in BLOCKS} == {"numpy", "torch", "jax", "tensorflow"}


@pytest.mark.parametrize("block", BLOCKS, ids=map(framework_of, BLOCKS))
def test_readme(block):
    if framework_of(block) not in requested_frameworks():
        pytest.skip(f"{framework_of(block)} was not asked for")
    parser = doctest.DocTestParser()
    assert run(parser.get_doctest(block, {}, "README.md", "README.md", 0))


def test_ci_runs_the_command_of_the_readme():
    compare, tests = COMMANDS
    assert compare.endswith("xentx compare")
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", TOOLS, ids=[line.split()[1] for line in TOOLS])
def test_tools(line, tmp_path):
    """The README's examples of the command run; its report is tested in tests/report."""
    if "--html" in line:
        pytest.skip("tests/report writes one")
    here = {"torch", "tensorflow"} <= set(requested_frameworks())  # Keras comes with TensorFlow
    if line.startswith("xentx diff") and not here:
        pytest.skip("it compares losses of two frameworks")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from xentx.cli import main; main()", *shlex.split(line)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def modules():
    """Every module of xentx that imports no framework."""
    names = [module.name for module in pkgutil.walk_packages(xentx.__path__, "xentx.")]
    return [name for name in names if not re.search(r"\.natives\.(calls|runtimes)\.", name)]


@pytest.mark.parametrize("name", modules())
def test_docstrings(name):
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        run(test)


def test_public_functions_have_examples():
    for name in xentx.__all__:
        if not isinstance(getattr(xentx, name), type):
            assert ">>>" in getattr(xentx, name).__doc__, name
