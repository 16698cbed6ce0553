"""The suite's fixtures."""

from xentx.testing._fixtures import pytest_generate_tests, pytest_report_header, route

__all__ = ["pytest_generate_tests", "pytest_report_header", "route"]
