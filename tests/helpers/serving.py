"""A running server of a package, and what it answers."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Reply = tuple[int, Any]


@dataclass
class Running:
    """A server in a process of its own."""

    process: "subprocess.Popen[str]"
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def ask(self, method: str, path: str, body: object = None) -> Reply:
        """Status and JSON of one request; a body that is not bytes is sent as JSON."""
        connection = self.connect()
        try:
            text = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
            connection.request(method, path, text)
            response = connection.getresponse()
            assert response.headers["Content-Type"] == "application/json"
            return response.status, json.loads(response.read() or "null")
        finally:
            connection.close()

    def stop(self) -> tuple[int, str]:
        """Exit code after SIGTERM, and what the server logged."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@contextmanager
def served(
    folder: Path, *options: str, python: str = sys.executable, **env: str
) -> Iterator[Running]:
    """Run ``serve.py`` of a folder at a free port, without anything of slmc on the path."""
    process = subprocess.Popen(
        [python, "serve.py", "--port", "0", *options],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "listening on http://127.0.0.1:" in line, line + process.stderr.read()
    try:
        yield Running(process, int(line.rpartition(":")[2]))
    finally:
        process.kill()
        process.communicate()
