"""A server that gives the page of `slmc serve` fixed answers, and fails when a test says so."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import slmc

PAGE = Path(slmc.__file__).parent / "server/page"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}
HOSTILE = "<img src=x onerror=\"document.title='run'\"></ol><script>document.title='run'</script>"
ITEMS = {"1": "Star Wars", "2": "Stargate", "3": None, "4": HOSTILE, "5": "Alien"}
"""Id -> title, the most popular first."""


def engine(name: str, top_k: int = 5) -> dict[str, Any]:
    return {"name": name, "precision": "int8", "items": 5, "history": 3, "top_k": top_k}


@dataclass
class Site:
    """What the server answers."""

    port: int = 0
    engines: list[dict[str, Any]] = field(default_factory=lambda: [engine("a"), engine("b")])
    lists: dict[str, list[str]] = field(
        default_factory=lambda: {"a": ["5", "4", "3"], "b": ["5", "3", "2"]}
    )
    """Engine -> what it recommends, whatever the history is."""
    unknown: list[str] = field(default_factory=list)
    failure: tuple[int, Any, dict[str, str]] | None = None
    """Status, content and headers of every answer to `recommend`."""
    token: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of `recommend`."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def answer(self, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """The content of an answer."""
        if path == "/engines":
            return {"engines": self.engines}
        if path == "/items":
            text, limit = query.get("q", [""])[0].lower(), int(query["limit"][0])
            matches = [
                {"item": item, "title": title}
                for item, title in ITEMS.items()
                if text in item or text in (title or "").lower()
            ]
            return {"items": matches[:limit]}
        self.asked.append(body)
        chosen = [one for one in self.lists[body["engine"]] if one not in body["history"]]
        items = [
            {"item": item, "title": ITEMS[item], "score": 2.5 - place}
            for place, item in enumerate(chosen[: body["k"]])
        ]
        by = "model" if body["history"] else "popular"
        name, unknown = body["engine"], self.unknown
        return {"engine": name, "items": items, "unknown": unknown, "by": by, "latency_ms": 1.25}


class Handler(BaseHTTPRequestHandler):
    """Answers from the site of its server; one request a connection, so that it can end."""

    site: Site

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        file = PAGE / (split.path.lstrip("/") or "index.html")
        if file.is_file():
            self._send(200, file.read_bytes(), {"Content-Type": TYPES[file.suffix]})
        elif split.path not in ("/engines", "/items", "/recommend"):
            self._send(404, b"{}", {})
        elif self.site.token and self.headers["Authorization"] != f"Bearer {self.site.token}":
            self._send(401, b'{"error": "token"}', {"WWW-Authenticate": "Bearer"})
        elif self.site.failure and split.path == "/recommend":
            status, content, headers = self.site.failure
            self._send(status, json.dumps(content).encode(), headers)
        else:
            content = self.site.answer(split.path, parse_qs(split.query), body)
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    do_POST = do_GET  # noqa: N815

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def answering(site: Site) -> Iterator[Site]:
    """Answer for a site, at its port or a free one, until the block ends."""
    handler = type("SiteHandler", (Handler,), {"site": site})
    with ThreadingHTTPServer(("127.0.0.1", site.port), handler) as server:
        server.daemon_threads = True
        site.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield site
        server.shutdown()
