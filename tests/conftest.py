"""Fixtures of `xentx.testing`, and checks that the session tests one complete installation."""

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
    """Exit if packages are from different installations, or if routes or the kernel are missing."""
    import xentx
    import xentx_numpy

    core, adapter = (Path(package.__file__).parents for package in (xentx, xentx_numpy))
    if adapter[1] not in (core[1], core[1] / "backends"):
        pytest.exit(f"xentx is from {core[1]} but xentx_numpy from {adapter[1]}", returncode=3)
    if not CHOSEN:
        pytest.exit("no route to test: XENTX_TEST_BACKENDS names none", returncode=3)
    # Without this check, all tests would pass on the portable core if the kernel had not been
    # built.
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
