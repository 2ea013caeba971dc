"""A server process: answers, errors, and its end."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hand_engine import by_hand

from slmc.serving.opening import load


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    engine = by_hand(tmp_path_factory.mktemp("place"), top_k=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "slmc", "serve", f"hand={engine.path}", "--port", "0"],
        env={**os.environ, "SLMC_TOKEN": "secret"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])

    def ask(method: str, path: str, body: Any = None, token: str = "secret") -> tuple[int, Any]:
        text = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request(method, path, text, {"Authorization": f"Bearer {token}"})
            with connection.getresponse() as response:
                return response.status, json.loads(response.read())

    yield ask, engine
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log


def test_the_answer_is_that_of_load(served: Any) -> None:
    ask, engine = served
    status, reply = ask("POST", "/recommend", {"history": ["b", "a", "x"], "k": 2})
    expected = load(engine).recommend(["b", "a"], k=2)
    assert status == 200 and reply["by"] == "model" and reply["unknown"] == ["x"]
    assert [one["item"] for one in reply["items"]] == expected.ids
    assert [one["score"] for one in reply["items"]] == expected.scores
    assert ask("POST", "/recommend", {"history": []})[1]["by"] == "popular"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"history": ["a", 7.5]}, "history[1]: expected text or a whole number, not 7.5"),
        ({"history": ["a"], "k": 4}, "k: 4 is out of range; this engine returns 1 to 3"),
        ({}, "history: missing; an empty list is a user without a history"),
    ],
)
def test_a_wrong_body_is_refused_by_name(served: Any, body: Any, error: str) -> None:
    assert served[0]("POST", "/recommend", body) == (400, {"error": error})


def test_limits_and_token(served: Any) -> None:
    ask, _ = served
    assert ask("POST", "/recommend", b"x" * 10_000_000)[0] == 413
    assert ask("GET", "/engines", token="other")[0] == 401
    assert ask("GET", "/health", token="other")[0] == 200
    assert [one["item"] for one in ask("GET", "/items?q=alien")[1]["items"]] == ["a"]
