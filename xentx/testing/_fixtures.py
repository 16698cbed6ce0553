"""The fixture ``route``, for this suite and for every conftest that imports it."""

import fnmatch
import importlib.util
import os

# These must be set before a framework is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import hypothesis
import pytest

from xentx.testing._routes import Route, requested_frameworks, routes

REQUESTED = requested_frameworks()
CHOSEN = routes(*REQUESTED)

hypothesis.settings.register_profile(
    "xentx",
    deadline=None,  # compile times vary
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("xentx")


def pytest_report_header() -> str:
    """Show the routes and the engine."""
    names = ", ".join(route.name for route in CHOSEN)
    kernel = importlib.util.find_spec("xentx._kernel")
    return (
        f"xentx routes: {names}\n"
        f"xentx kernel: {kernel.origin if kernel else 'none'}; "
        f"XENTX_ENGINE: {os.environ.get('XENTX_ENGINE', 'not set')}"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that have an argument `route`."""
    if "route" in metafunc.fixturenames:
        metafunc.parametrize("route", CHOSEN, ids=[r.name for r in CHOSEN], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that match `Route.gaps` as expected failures."""
    for item in items:
        made = item.callspec.params.get("route") if hasattr(item, "callspec") else None
        name = f"{item.path.name}::{item.name}"
        for pattern, reason in made.gaps.items() if made else ():
            # Brackets in test names are not character classes.
            if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture
def route(request: pytest.FixtureRequest) -> Route:
    """One way to call xentx: a framework, eager or traced."""
    made: Route = request.param()
    return made
