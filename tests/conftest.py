"""What every test needs: the fixtures of `xentx.testing`, and a guard that one xentx is tested."""

import importlib
import os
from pathlib import Path

import pytest

from xentx.testing._fixtures import (
    CHOSEN,
    REQUESTED,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    pytest_report_header,
    route,
)

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_generate_tests",
    "pytest_report_header",
    "route",
]


def pytest_sessionstart() -> None:
    """Refuse to test roots that don't belong together, no route, or no kernel where it must be."""
    import xentx
    import xentx_numpy

    core, adapter = (Path(package.__file__).parents for package in (xentx, xentx_numpy))
    if adapter[1] not in (core[1], core[1] / "backends"):
        pytest.exit(f"xentx is from {core[1]} but xentx_numpy from {adapter[1]}", returncode=3)
    if not CHOSEN:
        pytest.exit("no route to test: XENTX_TEST_BACKENDS names none", returncode=3)
    # Without it everything passes, on the portable core: a kernel that was not built would be
    # tested by nobody, and missed by nobody.
    if os.environ.get("XENTX_REQUIRE_KERNEL", "0") not in {"", "0"}:
        try:
            importlib.import_module("xentx._kernel")
        except ImportError as error:
            pytest.exit(
                f"XENTX_REQUIRE_KERNEL is set, but there is no kernel: {error}", returncode=3
            )


@pytest.fixture(scope="session")
def frameworks() -> tuple[str, ...]:
    """The frameworks that this run tests."""
    return REQUESTED
