"""What the documents say is run: the README's examples and commands, and the docstrings'."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import xentx
from routes import requested_frameworks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
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
