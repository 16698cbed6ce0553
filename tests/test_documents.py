"""Run the examples and commands in the README, docs/ and the docstrings.

The blocks of a document run in order and share a namespace, and so do the cells of a notebook. A
section begins at a heading, a tab, or a block that imports. It runs if all frameworks that it
imports are requested.
"""

import bisect
import doctest
import importlib
import importlib.util
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

import xentx
from xentx.testing import requested_frameworks

ROOT = Path(__file__).parents[1]
# dask is not a framework of XENTX_TEST_BACKENDS: its examples run if it is installed.
HAS_DASK = importlib.util.find_spec("dask") is not None
README = ROOT / "README.md"
DOCUMENTS = (
    README,
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts),
)
OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
SYBIL = Sybil([PythonCodeBlockParser()], path=str(ROOT))

FRAMEWORKS = {
    "torch": "torch",
    "xentx_torch": "torch",
    "jax": "jax",
    "optax": "jax",
    "xentx_jax": "jax",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "dask": "dask",
    "xentx_tensorflow": "tensorflow",
    "xentx_keras": "tensorflow",
}
IMPORT = re.compile(r"^(?:import|from) (\w+)", flags=re.MULTILINE)
SECTION = re.compile(r"^(?:#+ |:::|```.*python\n(?:>>> )?(?:import|from) )", flags=re.MULTILINE)
# Commands are indented in the README. In docs/ they follow a prompt or are run by the page.
COMMAND = re.compile(r"^(?:    |\$ |```\{command-output\} )(xentx .*)$", flags=re.MULTILINE)


# Idioms that readers who learnt English as a foreign language ask about, and what to write.
PHRASES = {
    r"(gradients?|derivatives?|differentiate[sd]?) by (?!autodiff)": "with respect to",
    r"can(no|')?t? be seen|sees? (no|the) values?": "concrete, traced, known",
    r"\bdoors?\b": "function",
    r"bits and all": "bit-identical",
    r"(say|said|says|need it|needs it) (so|said)": "required",
    r"is the caller's": "is left to the caller",
    r"in the same words": "the same error message",
    r"whatever (its|their)": "for any",
    r"accumulated wide": "accumulated in a wider dtype",
    r"is the truth|the truth\b": "true value",
    r"\bmend(s|ed)?\b": "correct, solve",
    r"\bbe had\b|\b(no|any|every|some)body\b|\bwhoever\b": "say who does what",
    r"\bas \w+ (has|have) (it|them)\b": "as in",
    r"(?<!there )\b(is|are|was) no (array|class|module|name|number|package)\b": "is not a",
    r"\banew\b": "again",
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def documents():
    """The README's examples hold with every version, others only with the pinned versions."""
    for path in DOCUMENTS:
        yield pytest.param(path, marks=() if path == README else pytest.mark.pinned, id=name(path))


def sections(path):
    """Group the examples of a document by sections."""
    document = SYBIL.parse(path)
    examples = list(document.examples())
    spans = [(example.region.start, example.region.end) for example in examples]
    starts = [match.start() for match in SECTION.finditer(document.text)]
    # A comment at the start of a line of code looks like a heading.
    starts = [at for at in starts if not any(a < at < b for a, b in spans)]
    for _, group in itertools.groupby(examples, lambda e: bisect.bisect(starts, e.region.start)):
        yield list(group)


def frameworks_of(examples):
    parsed = (example.parsed for example in examples)
    source = "\n".join(getattr(one, "source", one) for one in parsed)
    return {FRAMEWORKS[root] for root in IMPORT.findall(source) if root in FRAMEWORKS}


def is_cell(example):
    text, start = example.document.text, example.region.start
    return text.startswith("```{code-cell}", text.rindex("```", 0, start + 3))


def test_the_first_page_has_an_example_in_each_framework():
    found = [frameworks_of(examples) for examples in sections(ROOT / "docs" / "index.md")]
    assert set() in found
    assert set.union(*found) == {"torch", "jax", "tensorflow"}


def test_the_readme_has_an_example_that_needs_numpy_alone():
    assert set() in [frameworks_of(examples) for examples in sections(README)]


@pytest.mark.parametrize("path", list(documents()))
def test_examples(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 0
    namespaces = {True: {}, False: {}}
    for examples in sections(path):
        if frameworks_of(examples) <= {*requested_frameworks(), *(["dask"] * HAS_DASK)}:
            for example in examples:
                example.namespace = namespaces[is_cell(example)]
                example.evaluate()
                count += 1
    if not count:
        pytest.skip("no example for the requested frameworks")


def anchors(path):
    """Anchors of a document: those that GitHub makes from headings, and explicit ones."""
    text = path.read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    slugs = (re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {"", *slugs, *re.findall(r'<a id="(.*?)"', text)}


@pytest.mark.parametrize("path", [*DOCUMENTS, *map(ROOT.joinpath, OTHERS)], ids=name)
def test_links(path):
    """Links to files of the repository have an existing target."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def assert_plain(text, where):
    for phrase, better in PHRASES.items():
        found = re.search(phrase, text, flags=re.IGNORECASE)
        assert not found, f"{where}: {found[0]!r}; write {better!r}"


def test_the_check_of_phrases_can_fail():
    with pytest.raises(AssertionError, match="page: 'gradient by '; write 'with respect to'"):
        assert_plain("The gradient by the logits.", "page")


@pytest.mark.parametrize("path", [*DOCUMENTS, *map(ROOT.joinpath, OTHERS)], ids=name)
def test_phrases_of_documents(path):
    assert_plain(path.read_text("utf-8"), name(path))


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tests", "xentx/testing"])
def test_phrases_of_tests_and_benchmarks(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if path != Path(__file__):
            assert_plain(path.read_text("utf-8"), name(path))


def test_ci_runs_the_command_of_the_readme():
    blocks = re.findall(r"```sh\n(.*?)\n```", README.read_text("utf-8"), flags=re.DOTALL)
    compare, tests = blocks
    assert compare.endswith("xentx compare")
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_conda_recipe_has_the_bounds_of_pyproject():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project = config["project"]
    extras = project["optional-dependencies"]
    texts = (
        *config["build-system"]["requires"],
        *config["dependency-groups"]["kernel"],
        *project["dependencies"],
        *(text for extra in ("torch", "jax", "tensorflow", "cli") for text in extras[extra]),
    )
    requirements = {made.name: str(made.specifier) for made in map(Requirement, texts)}
    requirements |= {"python": project["requires-python"], "pytorch": requirements["torch"]}
    recipe = (ROOT / "conda" / "recipe.yaml").read_text("utf-8")
    bounds = re.findall(r"^ +- ([\w-]+) (>=.+)$", recipe, flags=re.MULTILINE)
    assert dict(bounds) == {name: requirements[name] for name, _ in bounds}
    needed = re.findall(r"^ +- ([\w-]+)", recipe.split("\n  run:\n")[1], flags=re.MULTILINE)
    assert {Requirement(text).name for text in project["dependencies"]} <= set(needed)
    assert project["description"] in recipe


def commands():
    found = (line for path in DOCUMENTS for line in COMMAND.findall(path.read_text("utf-8")))
    return dict.fromkeys(found)


@pytest.mark.parametrize("line", commands())
def test_commands(line, tmp_path):
    """The commands in the documents run. tests/report checks the report."""
    if len(requested_frameworks()) < 4 and requested_frameworks() != ("numpy",):
        pytest.skip("they run with NumPy alone, and with all frameworks")
    rng = np.random.default_rng(0)
    batch = {"logits": rng.normal(size=(64, 10)), "target": rng.integers(10, size=64)}
    np.savez(tmp_path / "batch.npz", **batch)  # the file of docs/howto/port_a_loss.md
    if "--html" in line:
        pytest.skip("tests/report writes one")
    here = {"torch", "tensorflow"} <= set(requested_frameworks())  # Keras comes with TensorFlow
    if line.startswith("xentx diff") and not here:
        pytest.skip("it compares losses of two frameworks")
    options = shlex.split(line)[1:]
    if options[0] == "compare":
        options += ["--framework", "numpy"]  # all frameworks would take minutes
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from xentx.cli import main; main()", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


# Packages for the users of each framework.
SURFACES = {
    "torch": ("xentx_torch",),
    "jax": ("xentx_jax",),
    "tensorflow": ("xentx_tensorflow", "xentx_keras"),
}


def surfaces():
    return [name for f in requested_frameworks() for name in SURFACES.get(f, ())]


def modules():
    """Modules of xentx that import no framework, and the packages of the requested frameworks."""
    packages = map(importlib.import_module, ["xentx", *surfaces()])
    found = (pkgutil.walk_packages(p.__path__, f"{p.__name__}.") for p in packages)
    names = [module.name for module in itertools.chain(*found)]
    # TensorFlow loads its operators from a library that is not a module, and Triton needs a GPU.
    others = re.compile(
        r"\.natives\.(calls|runtimes)\.|\._tensorflow_op$|\._triton\._(kernels|launch)$"
    )
    return [name for name in names if not others.search(name)]


@pytest.mark.parametrize("name", modules())
def test_docstrings(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    output = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=output.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)


@pytest.mark.parametrize("package", ["xentx", *surfaces()])
def test_phrases_of_public_docstrings(package):
    module = importlib.import_module(package)
    for public in module.__all__:
        if callable(getattr(module, public)):
            assert_plain(getattr(module, public).__doc__, f"{package}.{public}")


def test_public_functions_have_examples():
    for name in xentx.__all__:
        if not isinstance(getattr(xentx, name), type):
            assert ">>>" in getattr(xentx, name).__doc__, name


@pytest.mark.parametrize("package", surfaces())
def test_surfaces_have_examples(package):
    """All functions, and the losses that are classes."""
    module = importlib.import_module(package)
    for name in module.__all__:
        if callable(getattr(module, name)):
            assert ">>>" in getattr(module, name).__doc__, name


def test_contributing_lists_the_places_of_an_option():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.split("## Add an option\n")[1].split("In the tests,")[0]
    listed = set(re.findall(r"`((?:xentx|backends|kernel)/[\w/]+\.\w+)`", section)) - {
        "xentx/_kernel_engine.py",
        "xentx/_core/partials.py",  # uses functions of `_softmax`
    }
    sources = [
        path for folder in ("xentx", "backends", "kernel") for path in (ROOT / folder).rglob("*")
    ]
    places = {
        name(path)
        for path in sources
        if path.suffix in {".py", ".h", ".cpp"}
        and "testing" not in path.parts
        and re.search(r"\btemperature\b", path.read_text("utf-8"))
    }
    assert listed == places
