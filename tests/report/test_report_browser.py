"""The page in a browser: it loads, draws, filters and searches, and sends no requests."""

import json

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait


def wait(browser):
    return WebDriverWait(browser, 120)


def text(browser, css):
    return browser.find_element(By.CSS_SELECTOR, css).text


def shown_cases(browser):
    cases = browser.find_elements(By.CSS_SELECTOR, ".corners .case")
    return [case.get_attribute("id") for case in cases if case.is_displayed()]


def toggle(browser, css):
    """Click a checkbox that a styled label covers."""
    browser.execute_script("document.querySelector(arguments[0]).click()", css)


def background(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_it_loads_without_a_complaint_or_a_request(browser, page):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    wait(browser).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#gap .scatterlayer .trace"))
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert page.as_uri() in requests
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}


def test_a_request_would_be_noticed(browser, page):
    """A request would appear in the browser's log, and the page's policy blocks it."""
    browser.get_log("browser")
    browser.execute_script("document.body.append(new Image()); new Image().src='https://a.test/b'")
    complaints = wait(browser).until(lambda b: b.get_log("browser"))
    assert "Content Security Policy" in complaints[0]["message"]


def test_the_heat_map_has_xentx_first_and_shows_figures_on_hover(browser, report):
    labels = browser.find_elements(
        By.CSS_SELECTOR, "#heat .yaxislayer-above text, #heat .ytick text"
    )
    assert report.losses[0].id in labels[0].text
    plot = browser.find_element(By.CSS_SELECTOR, "#heat .nsewdrag")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    left, top = 10 - plot.size["width"] // 2, 10 - plot.size["height"] // 2
    ActionChains(browser).move_to_element_with_offset(plot, left, top).perform()
    hover = wait(browser).until(
        lambda b: b.find_elements(By.CSS_SELECTOR, "#heat .hoverlayer .hovertext")
    )
    shown = hover[0].text
    assert report.losses[0].id in shown
    assert "ULP" in shown
    assert "wrongly 0" in shown


def test_the_heat_map_switches_to_the_gradient_and_the_dtype(browser):
    def figures():
        return browser.execute_script("return document.getElementById('heat').data[0].text.flat()")

    before = figures()
    toggle(browser, "input[name=heat-part][value=gradient]")
    assert figures() != before
    toggle(browser, "input[name=heat-part][value=loss]")
    assert figures() == before
    Select(browser.find_element(By.ID, "heat-dtype")).select_by_visible_text("float16")
    assert figures() != before


def test_the_gap_curves_end_in_0_for_the_native_and_not_for_xentx(browser, report):
    curves = browser.execute_script(
        "return document.getElementById('gap').data.map((curve) => [curve.legendgroup, curve.y])"
    )
    last = {group: errors[-1] for group, errors in curves}
    assert last["xentx"] < 1e-6
    assert last["numpy"] == 1.0


def test_filters(browser, report):
    everything = shown_cases(browser)
    assert len(everything) == len(report.corners)

    Select(browser.find_element(By.ID, "corner-group")).select_by_value("soft targets")
    some = shown_cases(browser)
    assert some == [f"corner-{c.name}" for c in report.corners if c.group == "soft targets"]
    assert text(browser, "#corner-count") == f"{len(some)} of {len(everything)} corner cases"
    Select(browser.find_element(By.ID, "corner-group")).select_by_value("")

    toggle(browser, "#corner-deviations")
    natives = {loss.id for loss in report.losses if not loss.is_xentx}
    deviating = {
        f"corner-{corner.name}"
        for corner in report.corners
        if any(r.verdict == "deviates" for r in corner.results if r.loss in natives)
    }
    assert set(shown_cases(browser)) == deviating

    box = browser.find_element(By.ID, "corner-text")
    box.send_keys("[20, 0] with")
    assert shown_cases(browser) == ["corner-confident-20"]
    box.clear()
    box.send_keys("no such text")
    assert shown_cases(browser) == []
    assert text(browser, "#corner-count").startswith("0 of")
    box.clear()
    box.send_keys(Keys.SPACE)

    toggle(browser, "input[name=framework][value=numpy]")
    assert shown_cases(browser) == []
    toggle(browser, "#corner-deviations")
    assert shown_cases(browser) == everything
    columns = browser.find_elements(By.CSS_SELECTOR, ".corners thead th")
    assert [c.text for c in columns if c.is_displayed()] == ["Case", "xentx\u2019s rule"]


def test_porting_follows_the_selects(browser, report):
    ids = [loss.id for loss in report.losses]
    before, after = (Select(browser.find_element(By.ID, f"port-{end}")) for end in ("from", "to"))
    assert {option.text for option in before.options} == set(ids)

    before.select_by_visible_text("xentx:numpy")
    after.select_by_visible_text("scipy:log_softmax + gather")
    port = text(browser, "#port")
    assert "option weight weight none" in " ".join(port.split())
    assert "[20, 0] with target 0" in port
    assert "have different results" in text(browser, "#port-count")

    browser.find_element(By.ID, "port-swap").click()
    assert before.first_selected_option.text == "scipy:log_softmax + gather"
    headings = browser.find_elements(By.CSS_SELECTOR, "#port thead th")
    assert [h.text for h in headings[:3]] == [
        "Property",
        "scipy:log_softmax + gather",
        "xentx:numpy",
    ]

    after.select_by_visible_text("scipy:log_softmax + gather")
    assert text(browser, "#port-count") == "Choose two different losses."
    assert text(browser, "#port") == ""


def test_the_theme_follows_the_system_and_the_button(browser, scheme):
    light = background(browser)
    scheme("dark")
    wait(browser).until(lambda b: background(b) != light)
    dark = background(browser)
    ink = browser.execute_script("return document.getElementById('gap').layout.font.color")
    button = browser.find_element(By.ID, "theme")
    assert button.get_attribute("aria-pressed") == "true"

    button.click()
    assert background(browser) == light
    assert button.get_attribute("aria-pressed") == "false"
    assert browser.execute_script("return document.getElementById('gap').layout.font.color") != ink
    button.click()
    assert background(browser) == dark


@pytest.mark.parametrize("width", [360, 390, 768, 1100])
def test_the_page_never_scrolls_sideways(browser, screen, page, width):
    screen(width, 844)
    browser.get(page.as_uri())
    wait(browser).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#gap .scatterlayer .trace"))
    browser.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_a_phone_shows_cards(browser, screen):
    screen(390, 844)
    label = browser.execute_script(
        "const cell = document.querySelector('.corners .case td');"
        "return [getComputedStyle(cell).display, getComputedStyle(cell, '::before').content]"
    )
    assert label == ["block", '"xentx\u2019s rule"']
    tally = browser.find_element(By.CSS_SELECTOR, ".tallies tbody tr")
    box = browser.find_element(By.CSS_SELECTOR, ".tallies")
    assert box.size["width"] <= 390
    # Tables that are displayed as blocks need roles to be tables for screen readers.
    for row in (browser.find_element(By.CSS_SELECTOR, ".corners .case"), tally):
        assert row.get_attribute("role") == "row"


def test_the_tab_key_reaches_every_control(browser):
    wanted = browser.execute_script(
        "return [...document.querySelectorAll('button, select, input, nav a')]"
        ".filter((e) => e.type !== 'radio' || e.checked).map((e) => e.outerHTML)"
    )
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    reached = set()
    for _ in range(600):
        element = browser.switch_to.active_element
        reached.add(element.get_attribute("outerHTML"))
        if element.get_attribute("id") == "port-to":
            break
        element.send_keys(Keys.TAB)
    assert [html for html in wanted if html not in reached] == []


def test_focus_is_visible(browser):
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    style = browser.execute_script(
        "const s = getComputedStyle(document.activeElement);"
        "return [s.outlineStyle, document.activeElement.getBoundingClientRect().left]"
    )
    assert style[0] == "solid"
    assert style[1] >= 0


def test_every_control_has_a_name(browser):
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, select, input')].filter((e) =>"
        " !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML)"
    )
    assert nameless == []
    headings = browser.execute_script(
        "return [...document.querySelectorAll('th')].filter((e) => !e.scope).length"
    )
    assert headings == 0
