"""The page in a browser: search, history, two engines side by side, errors in plain words."""

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import PHONE, Page, chromium
from page_server import HOSTILE, PAGE, Site, answering, engine

GONE = "The server does not answer. Check that it is running, then try again."
CONTRAST = 4.5
"""Least contrast of text, by WCAG 2, level AA."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def site() -> Iterator[Site]:
    with answering(Site()) as running:
        yield running


@pytest.fixture
def page(browser: Any, site: Site) -> Page:
    opened = Page(browser, site.url)
    opened.expect_in("#summary", "in both lists")
    return opened


def keys() -> Any:
    from selenium.webdriver.common.keys import Keys

    return Keys


def test_the_page_has_no_script_or_style_inside_and_asks_no_other_server() -> None:
    html, script, style = (
        (PAGE / name).read_text() for name in ("index.html", "page.js", "page.css")
    )
    assert html.count("<script") == 1 and '<script src="page.js" type="module"></script>' in html
    assert "<style" not in html and "style=" not in html and " on" + "click" not in html
    for text in (html, script, style):
        assert "http:" not in text and "https:" not in text and "//" + "cdn" not in text
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script


def test_two_engines_are_shown_with_their_latencies_and_differences(page: Page, site: Site) -> None:
    assert page.names("first") == ["Alien", HOSTILE, "3"]
    assert page.names("second") == ["Alien", "3", "Stargate"]
    assert page.text("#summary") == (
        "2 of 3 items are in both lists. Items in one list only are marked."
    )
    assert page.texts("#first .differs .badge") == ["only here"]
    assert page.texts("#first .badge") == ["only here", "other list: 2"]
    assert page.texts("#second .differs .name") == ["Stargate 2only here"]
    assert page.texts("#first .server, #second .server") == ["1.25 ms", "1.25 ms"]
    assert page.text("#first .trip").startswith("round trip ")
    assert float(page.text("#first .trip").split()[2]) > 0
    assert page.text("#first .about") == "int8 · 5 items · reads the newest 3"
    assert "most popular items" in page.text("#first .note")
    assert [one["engine"] for one in site.asked] == ["a", "b"]
    assert page.problems() == []


def test_a_history_is_picked_and_removed(page: Page, site: Site) -> None:
    page.add("star")
    page.add("3")
    page.add("alien")
    page.expect("#history .name", "Star Wars 1", "3", "Alien 5")
    page.wait(lambda: page.names("first") == [HOSTILE])
    assert site.asked[-1] == {
        "engine": "b", "k": 5, "exclude_seen": True, "history": ["1", "3", "5"],
    }  # fmt: skip
    remove = page.find("#history li:nth-child(2) button")
    assert remove.get_attribute("aria-label") == "Remove 3"
    remove.click()
    page.expect("#history .name", "Star Wars 1", "Alien 5")
    page.wait(lambda: page.names("first") == [HOSTILE, "3"])
    assert page.browser.switch_to.active_element.get_attribute("aria-label") == "Remove Alien"
    page.find("#clear").click()
    page.expect("#history .name")
    page.expect_in("#first .note", "most popular items")
    assert page.problems() == []


def test_options_are_sent_and_checked(page: Page, site: Site) -> None:
    number = page.find("#k")
    assert number.get_attribute("max") == number.get_attribute("value") == "5"
    number.clear()
    number.send_keys("2")
    page.wait(lambda: page.names("first") == ["Alien", HOSTILE])
    page.find("#exclude").click()
    page.wait(lambda: site.asked[-1]["exclude_seen"] is False)
    asked = len(site.asked)
    number.clear()
    number.send_keys("9")
    page.expect("#k-help", "a whole number from 1 to 5")
    assert number.get_attribute("aria-invalid") == "true"
    assert {one["k"] for one in site.asked[asked:]} <= {5, 2}


def test_the_search_box_works_with_the_keyboard(page: Page) -> None:
    key = keys()
    box = page.find("#search")
    box.click()
    page.expect("#matches .name", "Star Wars 1", "Stargate 2", "3", f"{HOSTILE} 4", "Alien 5")
    assert box.get_attribute("aria-expanded") == "true"
    page.type(key.ESCAPE)
    page.wait(lambda: box.get_attribute("aria-expanded") == "false")
    page.search("star")
    page.expect("#matches [aria-selected=true] .name", "Star Wars 1")
    page.type(key.ARROW_DOWN)
    chosen = page.find("#matches [aria-selected=true]")
    assert chosen.text == "Stargate 2"
    assert box.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    page.type(key.ARROW_DOWN)
    page.expect("#matches [aria-selected=true] .name", "Star Wars 1")
    page.type(key.ARROW_UP, key.ENTER)
    page.expect("#history .name", "Stargate 2")
    assert box.get_attribute("value") == ""
    page.type("alien", key.ENTER)  # before the matches have come
    page.expect("#history .name", "Stargate 2", "Alien 5")
    page.type("nothing has this")
    page.expect("#search-help", "a has no such title or id.")
    page.type(key.ESCAPE)
    page.wait(lambda: box.get_attribute("value") == "")
    assert page.problems() == []


def test_titles_with_html_are_shown_as_text(page: Page, site: Site) -> None:
    site.unknown = ["4"]
    page.add("onerror")
    page.expect("#history .name", f"{HOSTILE} 4")
    page.expect_in("#second .note", f"Not known to this engine: {HOSTILE}.")
    site.failure = (400, {"error": HOSTILE}, {})
    page.find("#exclude").click()
    page.expect_in("#problem", f"It says: {HOSTILE}")
    assert page.browser.title == "slmc serve"
    assert page.browser.find_elements("css selector", "body img, body script") == []


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        ((429, {"error": "queue"}, {"Retry-After": "2"}),
         "a: Too many requests wait for the server. Try again in 2 s."),
        ((503, {"error": "it is stopping"}, {}),
         "a: The server could not answer in time. It says: it is stopping"),
        ((422, {"detail": [{"loc": ["k"]}]}, {}),
         'a: The server refused the request (error 422). It says: [{"loc":["k"]}]'),
    ],
)  # fmt: skip
def test_failures_are_explained(
    page: Page, site: Site, failure: tuple[int, Any, dict[str, str]], sentence: str
) -> None:
    site.failure = failure
    page.find("#exclude").click()
    page.expect("#problem", sentence)
    assert page.names("first") == page.names("second") == []
    site.failure = None
    page.find("#again").click()
    page.wait(lambda: len(page.names("second")) == 3)
    page.expect("#problem", "")
    assert not page.find("#again").is_displayed()


def test_a_server_that_has_gone_and_comes_back(browser: Any) -> None:
    site = Site()
    with answering(site):
        page = Page(browser, site.url)
        page.add("star")
        page.wait(lambda: page.names("second"))
    page.find("#exclude").click()
    page.expect("#problem", f"a: {GONE}")
    with answering(site):
        page.find("#again").click()
        page.wait(lambda: page.names("second"))
        page.expect("#problem", "")
        page.expect("#history .name", "Star Wars 1")


def test_a_token_is_asked_for_and_forgotten(browser: Any) -> None:
    with answering(Site(token="secret")) as site:
        page = Page(browser, site.url)
        page.expect("#problem", "This server asks for a token.")
        page.type("guess", keys().ENTER)
        page.expect("#problem", "The server did not accept this token.")
        page.type("secret", keys().ENTER)
        page.wait(lambda: page.names("second"))
        page.expect("#problem", "")
        assert not page.find("#token-form").is_displayed()
        kept = "return [document.cookie, {...localStorage}, {...sessionStorage}, location.href]"
        assert browser.execute_script(kept) == ["", {}, {}, site.url]
        browser.refresh()
        page.expect("#problem", "This server asks for a token.")


def test_one_engine_alone(browser: Any) -> None:
    with answering(Site(engines=[engine("a", top_k=2)])) as site:
        page = Page(browser, site.url, PHONE)
        page.wait(lambda: page.names("first") == ["Alien", HOSTILE])
        assert page.names("second") == []
        page.expect("#second .note", "Only one engine is served; `slmc serve` takes several.")
        assert page.text("#summary") == "" and page.texts(".badge") == []
        assert [one["k"] for one in site.asked] == [2]


def test_engines_are_chosen(page: Page, site: Site) -> None:
    page.find("#second-engine option[value='a']").click()
    page.expect("#summary", "3 of 3 items are in both lists.")
    page.find("#second-engine option[value='']").click()
    page.wait(lambda: page.names("second") == [])
    assert page.texts(".badge") == []


def test_a_phone_needs_no_sideways_scrolling(browser: Any, site: Site) -> None:
    page = Page(browser, site.url, PHONE)
    page.add("star")
    page.add("onerror")
    page.wait(lambda: page.names("second"))
    width, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert width <= inner
    small = browser.execute_script(
        "return [...document.querySelectorAll('button, select, input:not([type=checkbox])')]"
        ".filter(e => e.offsetParent && e.getBoundingClientRect().height < 44).map(e => e.id)"
    )
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_have_contrast(browser: Any, site: Site, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page = Page(browser, site.url)
    page.wait(lambda: page.names("second"))
    for css in ("body", ".dim", ".badge", ".differs .score", "#problem"):
        ink, paper = (luminance(colour) for colour in colours(page, css))
        bright, dark = max(ink, paper), min(ink, paper)
        assert (bright + 0.05) / (dark + 0.05) >= CONTRAST, css
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def colours(page: Page, css: str) -> tuple[str, str]:
    """Colour of an element, and that of the nearest background behind it."""
    ink, paper = page.browser.execute_script(
        "let e = document.querySelector(arguments[0]); const ink = getComputedStyle(e).color;"
        "while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;"
        "return [ink, getComputedStyle(e).backgroundColor]",
        css,
    )
    return ink, paper


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(R, G, B)`, as WCAG 2 defines it."""
    channels = [int(one) / 255 for one in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
