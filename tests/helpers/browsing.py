"""The page of `slmc serve` in headless Chromium."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WAIT_S = 20.0
"""Patience: a shared machine may be slow."""
DEBIAN = "apt-get install chromium chromium-driver"
PHONE = (390, 844)
DESKTOP = (1280, 900)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install --group dev"
    )
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(f"no Chromium with its driver on this machine: {DEBIAN}")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        # Without a sandbox, since tests may run as root; the page is our own.
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        started = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield started
        finally:
            started.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = DESKTOP) -> None:
        """Open the page and wait for its engines."""
        self.browser = browser
        browser.set_window_size(*size)
        browser.get_log("browser")  # of earlier pages
        browser.get(url)

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        """Visible texts of elements, read at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())"
        read: list[str] = self.browser.execute_script(script, css)
        return read

    def text(self, css: str) -> str:
        return " ".join(self.texts(css))

    def wait(self, until: Callable[[], object], what: str = "") -> None:
        """Wait until something holds."""
        from selenium.webdriver.support.wait import WebDriverWait

        message = f"{what}\n{self.find('body').text}"
        WebDriverWait(self.browser, WAIT_S, 0.05).until(lambda _: until(), message)

    def expect(self, css: str, *texts: str) -> None:
        """Wait until elements have these texts."""
        self.wait(lambda: self.texts(css) == list(texts), f"{css}: {texts}, {self.texts(css)}")

    def expect_in(self, css: str, text: str) -> None:
        """Wait until the text of elements contains another."""
        self.wait(lambda: text in self.text(css), f"{css}: {text}, {self.text(css)}")

    def type(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        self.browser.switch_to.active_element.send_keys(*keys)

    def search(self, text: str) -> None:
        """Type into the search box and wait for matches."""
        box = self.find("#search")
        self.wait(box.is_enabled)
        box.clear()
        box.send_keys(text)
        self.wait(lambda: self.texts("#matches li"))

    def add(self, text: str) -> None:
        """Add the first match to the history."""
        before = len(self.texts("#history li"))
        self.search(text)
        self.find("#matches li").click()
        self.wait(lambda: len(self.texts("#history li")) == before + 1)

    def names(self, panel: str) -> list[str]:
        """Titles, or ids, that a panel recommends."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(e => e.firstChild.nodeValue)"
        )
        read: list[str] = self.browser.execute_script(script, f"#{panel} .items .name")
        return read

    def problems(self) -> list[str]:
        """What the browser has logged."""
        return [entry["message"] for entry in self.browser.get_log("browser")]
