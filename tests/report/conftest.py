"""A report of a short comparison, its HTML page, and a browser for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from xentx.compare import CORNERS, REGIMES, Plan, Report, compare
from xentx.compare.html import write_html

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def report() -> Report:
    """A report for NumPy: xentx, SciPy with some deviations, and an inaccurate example."""
    return compare(
        Plan(
            frameworks=("numpy",),
            losses=("scipy:*", "numpy:*"),
            regimes=tuple(REGIMES[name] for name in ("worked-example", "gap", "near-tied-10")),
            dtypes=("float32", "float16"),
            corners=tuple(CORNERS.values()),
        )
    )


@pytest.fixture(scope="session")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML page of the report."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(report, path)
    return path


def _programs() -> tuple[str, str] | None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A headless Chromium, started once."""
    programs = _programs()
    if programs is None:
        reason = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
        if os.environ.get("XENTX_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The browser after loading the page, with a desktop screen and the light scheme."""
    from selenium.webdriver.support.ui import WebDriverWait

    set_screen(chromium, 1280, 900)
    set_scheme(chromium, "light")
    chromium.get(page.as_uri())
    # Filling these lists is the last step of the script when it loads.
    WebDriverWait(chromium, 120).until(lambda b: b.find_elements("css selector", "#port-to option"))
    return chromium


def set_screen(driver, width: int, height: int) -> None:
    """Set the size of the screen."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def set_scheme(driver, scheme: str) -> None:
    """Set the preferred color scheme of the system."""
    # With reduced motion, a click does not have to wait for smooth scrolling.
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture
def screen(browser):
    """Return a function that sets the size of the screen."""
    return lambda width, height: set_screen(browser, width, height)


@pytest.fixture
def scheme(browser):
    """Return a function that sets the preferred color scheme."""
    return lambda name: set_scheme(browser, name)
