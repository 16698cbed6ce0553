"""docs/deviations.md is the output of its generator for the frameworks that pyproject.toml pins."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from xentx.compare import BINARY_CORNERS, Plan, compare

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate_deviations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def binary():
    corners = tuple(BINARY_CORNERS.values())
    plan = Plan(frameworks=("numpy",), loss="binary_cross_entropy", regimes=(), corners=corners)
    return compare(plan)


@pytest.mark.pinned
def test_the_page_is_up_to_date(generator, frameworks):
    missing = {"numpy", "torch", "jax", "tensorflow"}.difference(frameworks)
    if missing:
        pytest.skip(f"the page is about all frameworks; not tested: {', '.join(sorted(missing))}")
    assert generator.generate() == generator.PAGE.read_text("utf-8"), (
        f"docs/deviations.md is stale: {generator.COMMAND}"
    )


def test_the_page_is_written_of_a_report_alone(generator, report, binary):
    assert generator.render(report, binary) == generator.render(report, binary)


def test_a_deviation_is_listed_with_its_rule_its_result_and_its_losses(generator, report, binary):
    page = generator.render(report, binary)
    section = page.split('<a id="confident-20"></a>')[1].split("####")[0]
    assert "xentx: `[2.061e-9]; gradient [-2.061e-9, 2.061e-9]`." in section
    assert "| NumPy | `[0]; gradient [0, 2.061e-9]` | `scipy:log_softmax + gather` |" in section
    assert "| [[20, 0] with target 0](#confident-20) |" in page


def test_a_deviation_of_xentx_would_be_listed(generator, report, binary):
    corner = next(corner for corner in report.corners if corner.name == "confident-20")
    own, *rest = corner.results
    native = next(result for result in rest if result.differences)
    broken = replace(native, loss=own.loss)
    page = generator.render(
        replace(report, corners=(replace(corner, results=(broken, *rest)),)), binary
    )
    assert "| xentx | `[0]; gradient [0, 2.061e-9]` | `xentx:numpy` |" in page


def test_every_link_has_a_target(generator, report, binary):
    page = generator.render(report, binary)
    anchors = {line.partition('id="')[2].partition('"')[0] for line in page.splitlines()}
    headings = {generator.slug(line[3:]) for line in page.splitlines() if line.startswith("## ")}
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert links <= anchors | headings


def test_the_binary_loss_has_its_own_section(generator, report, binary):
    page = generator.render(report, binary)
    section = page.split("## Binary cross-entropy")[1].split("## Rules")[0]
    assert section.count("| `") == len(binary.corners)
    assert "| logits of 20 and -20 with their own targets | `[2.061e-9, 2.061e-9]` |" in section
