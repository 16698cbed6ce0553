"""What every test needs: the routes to run it on, and a guard that one xentx is being tested."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import hypothesis
import pytest

from routes import FRAMEWORKS, ROUTES, requested_frameworks

hypothesis.settings.register_profile(
    "xentx",
    deadline=None,  # compilers take as long as they take
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("xentx")

REQUESTED = requested_frameworks()
CHOSEN = [route for route in ROUTES if route.framework in REQUESTED]


def pytest_report_header() -> str:
    """Say what runs, and what does not."""
    left_out = [name for name in FRAMEWORKS if name not in REQUESTED]
    routes = ", ".join(route.name for route in CHOSEN)
    kernel = importlib.util.find_spec("xentx._kernel")
    return (
        f"xentx routes: {routes}; left out: {', '.join(left_out) or 'none'}\n"
        f"xentx kernel: {kernel.origin if kernel else 'none'}; "
        f"XENTX_ENGINE: {os.environ.get('XENTX_ENGINE', 'not set')}"
    )


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
    if os.environ.get("XENTX_REQUIRE_NATIVE", "0") not in {"", "0"}:
        try:
            importlib.import_module("xentx._kernel")
        except ImportError as error:
            pytest.exit(
                f"XENTX_REQUIRE_NATIVE is set, but there is no kernel: {error}", returncode=3
            )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `route` on each of them, one that takes `framework` on each."""
    if "route" in metafunc.fixturenames:
        metafunc.parametrize("route", CHOSEN, ids=[r.name for r in CHOSEN], indirect=True)


@pytest.fixture
def route(request: pytest.FixtureRequest) -> object:
    """A way into xentx: a framework, eager or traced."""
    return request.param()


@pytest.fixture
def frameworks() -> tuple[str, ...]:
    """The frameworks that this run tests."""
    return REQUESTED
