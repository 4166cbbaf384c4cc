"""The status page in a real browser, without JavaScript, on a screen and on a phone."""

import io
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.daemon import kill_workers
from tests.integration import edge

SCREEN, PHONE = (1200, 1000), (390, 844)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.add_experimental_option(
        "prefs", {"profile.managed_default_content_settings.javascript": 2}
    )
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        "force-color-profile=srgb",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def mine(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A daemon that signed, failed, lost a worker, and has been looked at since."""
    with edge.own(appliance, tmp_path_factory.mktemp("seen"), workers=2) as made:
        with edge.connect(made.dev) as issuer:
            worker = psutil.Process(made.process.pid).children()[0]
            kill_workers(made.dir, worker)
            edge.until(
                lambda: (
                    issuer.sign([b"{}"] * 50 + [b"no JSON"]) and "no data" not in made.get("/")[1]
                ),
                "the first sample is there",
            )
        yield made


@pytest.fixture
def look(browser: webdriver.Chrome, mine: Any) -> Callable[[tuple[int, int]], str]:
    """Opens the page at a size; returns its text."""

    def at(size: tuple[int, int]) -> str:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(mine.dev["metrics"] + "/")
        return str(browser.find_element(By.TAG_NAME, "body").text)

    return at


def picture(browser: webdriver.Chrome) -> Image.Image:
    shot = browser.get_screenshot_as_png()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def colours(image: Image.Image, element: Any) -> set[Any]:
    """The colours of the part of a screenshot where an element is."""
    rect = element.rect
    box = (rect["x"], rect["y"], rect["x"] + rect["width"], rect["y"] + rect["height"])
    found = image.crop(tuple(round(edge) for edge in box)).getcolors(1 << 20)
    assert found is not None
    return {colour for _, colour in found}


def test_it_tells_what_happened(look: Callable[[tuple[int, int]], str], mine: Any) -> None:
    text = look(SCREEN)
    assert "Signer SERVING" in text
    assert re.search(r"signed: now [\d.,]+, highest [\d.,]+ a second", text)
    assert re.search(r"p99 \(99 of 100 are faster\): now [\d.,]+, highest [\d.,]+ ms", text)
    assert socket.gethostname() in text
    assert text.count("signer-dev serving") == 2
    assert "worker_left token signer-dev: died" in text
    assert "13 ACTIVE" in text
    assert not [name for name in ("01-001", "01-002", "moh", "spiffe") if name in text]
    assert mine.get("/readyz")[0] == 200


def test_its_picture_shows_the_state_and_lines_in_the_charts(
    look: Callable[[tuple[int, int]], str], browser: webdriver.Chrome
) -> None:
    look(SCREEN)
    image = picture(browser)
    state = colours(image, browser.find_element(By.CSS_SELECTOR, "h1 span"))
    assert any(green > red + 60 for red, green, _ in state)
    throughput, latency = browser.find_elements(By.TAG_NAME, "svg")
    assert throughput.rect["width"] > 300
    for chart in (throughput, latency):
        assert any(blue > red + 60 for red, _, blue in colours(image, chart))  # the first line


def test_it_is_readable_on_a_phone(
    look: Callable[[tuple[int, int]], str], browser: webdriver.Chrome
) -> None:
    text = look(PHONE)
    assert "Signer SERVING" in text
    width, right = PHONE[0], 0.0
    for element in browser.find_elements(By.CSS_SELECTOR, "h1, h2, p, svg, table, td, th"):
        right = max(right, element.rect["x"] + element.rect["width"])
    assert right <= width, "something is wider than the screen"
    assert browser.find_element(By.TAG_NAME, "svg").rect["width"] > width * 0.8
    size = browser.find_element(By.TAG_NAME, "td").value_of_css_property("font-size")
    assert float(size.removesuffix("px")) >= 14


def test_it_fetches_nothing_but_itself(
    look: Callable[[tuple[int, int]], str], browser: webdriver.Chrome, mine: Any
) -> None:
    html = mine.get("/")[1]
    assert not re.search(r"(?i)<script|<link|<img|https?://|@import|url\(", html)
    look(SCREEN)
    assert browser.find_elements(By.TAG_NAME, "script") == []
