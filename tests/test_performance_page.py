"""docs/performance.md is what its generator makes of the benchmarks' figures."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate_performance.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.generate() == generator.PAGE.read_text("utf-8"), (
        f"docs/performance.md is stale: {generator.COMMAND}"
    )
