"""Pictures of the page of ``slmc serve``: ``python benchmarks/page.py ENGINE ENGINE --write docs``.

Starts ``slmc serve`` with two engines, picks titles in headless Chromium, and writes pictures of
the page on a light and a dark desktop and on a phone into the folder. ``NAME=PATH`` names an
engine. Needs selenium and Chromium with its driver (``apt-get install chromium chromium-driver``).
"""

import argparse
import base64
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from serve import server

TITLES = ("Star Wars", "Empire Strikes", "Raiders of the Lost")
SEARCH = "indiana"
"""Typed last, so that the picture shows the matches."""
DESKTOP, PHONE = (1180, 860), (390, 1350)
PICTURES = {
    "serve-light": (DESKTOP, "light", ""),
    "serve-dark": (DESKTOP, "dark", SEARCH),
    "serve-phone": (PHONE, "light", ""),
}
"""Name -> size, colours, text in the search box."""
LARGEST = 150_000
"""Bytes of a picture."""
WAIT_S = 20


def browser(profile: str) -> Chrome:
    """Headless Chromium; without a sandbox, since this may run as root, and the page is our own."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("chromium is not installed")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    driver = shutil.which("chromedriver") or sys.exit("chromium-driver is not installed")
    return Chrome(options, ChromeService(driver))


def draw(chrome: Chrome, url: str, size: tuple[int, int], colours: str, search: str) -> bytes:
    """The page with a history, as WebP."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": False}
    features = [{"name": "prefers-color-scheme", "value": colours}]
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get(url)
    box = chrome.find_element("id", "search")
    wait = WebDriverWait(chrome, WAIT_S)
    wait.until(lambda _: box.is_enabled())
    for number, title in enumerate(TITLES, start=1):
        box.send_keys(title)
        wait.until(lambda _: chrome.find_elements("css selector", "#matches li"))
        box.send_keys(Keys.ENTER)
        wait.until(lambda _, n=number: len(elements(chrome, "#history li")) == n)
    wait.until(lambda _: not elements(chrome, ".waiting"))
    wait.until(lambda _: "most popular" not in chrome.find_element("css selector", ".note").text)
    if search:
        box.send_keys(search)
        wait.until(lambda _: elements(chrome, "#matches li"))
    kind = {"format": "webp", "quality": 80}
    return base64.b64decode(chrome.execute_cdp_cmd("Page.captureScreenshot", kind)["data"])


def elements(chrome: Chrome, css: str) -> list[Any]:
    """Elements of the page."""
    return list(chrome.find_elements("css selector", css))


def main(engines: list[str], out: Path) -> None:
    """Write all pictures into a folder."""
    with tempfile.TemporaryDirectory() as place, server(engines, Path(place, "log")) as (url, _):
        chrome = browser(f"{place}/profile")
        try:
            for name, (size, colours, search) in PICTURES.items():
                picture = draw(chrome, url, size, colours, search)
                if len(picture) > LARGEST:
                    sys.exit(f"{name} has {len(picture):,} bytes")
                (out / f"{name}.webp").write_bytes(picture)
                print(f"{out / name}.webp: {len(picture):,} bytes")
        finally:
            chrome.quit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs=2, metavar="ENGINE")
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    main(arguments.engines, arguments.write)
