"""A process of ``slmc serve`` with one engine, named hand."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

BODY = json.dumps({"history": ["a", "b"], "k": 2})
ANSWER_S = 20


@contextmanager
def server(path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "slmc", "serve", f"hand={path}", "--port", "0", *options],
        env={name: value for name, value in os.environ.items() if name != "SLMC_TOKEN"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline().rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=ANSWER_S)
        assert process.returncode == 0, log
        assert "Traceback" not in log


def ask(port: int, path: str = "/recommend", body: str | None = BODY) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as connection:
        connection.request("GET" if body is None else "POST", path, body)
        with connection.getresponse() as response:
            return response.status, response.read()
