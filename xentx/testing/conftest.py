"""Fixtures of the test suite."""

from xentx.testing._fixtures import (
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
