"""docs/performance.md is the output of its generator for the stored benchmark results."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator():
    path = ROOT / "docs" / "generate_performance.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_summary(generator):
    speed, linear = (
        json.loads(path.read_text("utf-8")) for path in (generator.SPEED, generator.LINEAR)
    )
    assert "\n".join(generator.summary(speed, linear)) in (ROOT / "README.md").read_text("utf-8")


def test_the_page_is_up_to_date(generator):
    assert generator.generate() == generator.PAGE.read_text("utf-8"), (
        f"docs/performance.md is stale: {generator.COMMAND}"
    )
