"""The page of a running ``slmc serve``, in a browser."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browsing import Page, chromium
from hand_engine import NEXT, TITLES, by_hand

HOSTILE = TITLES["d"]["title"]
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two engines; the second one has the scores of the first in reverse."""
    folders = [tmp_path_factory.mktemp(name) for name in ("plain", "reversed")]
    scores = (NEXT, NEXT[:, [0, *range(4, 0, -1)]].copy())
    built = [by_hand(folder, 3, scores=one) for folder, one in zip(folders, scores, strict=True)]
    return [f"{name}={one.path}" for name, one in zip(("plain", "reversed"), built, strict=True)]


@contextmanager
def serving(engines: list[str], **env: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The URL and the process of ``slmc serve`` at a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "slmc", "serve", *engines, "--port", "0"],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def test_from_a_search_to_two_recommendations(browser: Any, engines: list[str]) -> None:
    with serving(engines) as (url, process):
        page = Page(browser, url)
        page.expect("#summary", "3 of 3 items are in both lists.")
        assert page.names("first") == page.names("second") == ["b", "Alien", "Überfahrt"]
        page.expect_in("#first .note", "most popular items")
        page.add("ali")
        page.expect("#history .name", "Alien a")
        page.wait(lambda: page.names("first") == ["b", "Überfahrt", HOSTILE])
        page.wait(lambda: page.names("second") == [HOSTILE, "Überfahrt", "b"])
        page.find("#exclude").click()
        page.wait(lambda: page.names("first") == ["Alien", "b", "Überfahrt"])
        page.expect(".differs .badge", "only here", "only here")
        for panel in ("first", "second"):
            server, trip = (page.text(f"#{panel} .{name}") for name in ("server", "trip"))
            assert float(server.removesuffix(" ms")) > 0
            assert float(server.removesuffix(" ms")) < float(trip.split()[2])
            assert page.text(f"#{panel} .about") == "fp32 · 4 items · reads the newest 2"
        page.find("#history button").click()
        page.expect_in("#first .note", "most popular items")
        assert page.problems() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        page.find("#exclude").click()
        page.expect_in("#problem", "The server does not answer.")


def test_the_token_of_the_server(browser: Any, engines: list[str]) -> None:
    with serving(engines[:1], SLMC_TOKEN=TOKEN) as (url, _):
        page = Page(browser, url)
        page.expect("#problem", "This server asks for a token.")
        page.type(TOKEN, "\n")
        page.wait(lambda: page.names("first") == ["b", "Alien", "Überfahrt"])
        page.search("über")
        page.expect("#matches .name", "Überfahrt c")
