"""Serve the recommender of this folder over HTTP: ``python serve.py``.

It needs onnxruntime, numpy and the standard library (``requirements.txt``)::

    POST /recommend   {"history": ["50", "181"], "k": 10, "exclude_seen": true}
    GET /health       {"status": "ok", "items": 1682, ...}

``python serve.py --health`` asks a running server whether it answers, for health checks. SIGTERM
and SIGINT end the server after it has answered the requests that have arrived.
"""

import argparse
import contextlib
import http.client
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import FrameType
from typing import Any

from slmc.package.recommender import Recommender, Request, RequestError, StartError

CONNECTIONS = 512
"""Largest number of open connections; each has a thread."""
LINGER_S = 1.0
"""Seconds for which a refused body is still read, so that the client can read the refusal."""
GRACE_S = 0.5
"""Seconds for which the end waits for the request of a connection that has just been opened."""
ANSWERS = {"/recommend": ("POST",), "/health": ("GET", "HEAD")}
"""Path -> its methods."""

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Limits:
    """What one client can take of the server."""

    body_bytes: int = 2**20
    """Largest body of a request: about 100,000 ids."""
    request_s: float = 10.0
    """Seconds within which a request must arrive, and within which its answer must be read."""
    queue: int = 64
    """Requests that are computed or wait for it; further ones get 503."""


class Server(ThreadingHTTPServer):
    """One thread for each connection, with bounds on connections, requests and their time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], recommender: Recommender, limits: Limits | None = None
    ) -> None:
        """Listen on an address; raises ``OSError`` if it cannot be used."""
        self.recommender, self.limits = recommender, limits or Limits()
        self.queue = threading.BoundedSemaphore(self.limits.queue)
        self.stopping = self.accepting = False
        self.open: set[socket.socket] = set()
        self.reading: dict[socket.socket, tuple[bool, float]] = {}
        """Connections without a whole request: whether a part of one has arrived; since when."""
        self.changed = threading.Condition()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without looking up the name of the host, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread; with too many connections, close it."""
        with self.changed:
            full = len(self.open) >= CONNECTIONS
            self.open.add(request)
        if full:
            self.shutdown_request(request)
            return
        self.waits(request, arriving=False)
        super().process_request(request, client_address)

    def waits(self, request: socket.socket, *, arriving: bool) -> None:
        """Note that a connection waits for a request, or for the rest of one."""
        with self.changed:
            self.reading[request] = arriving, time.monotonic()

    def arrived(self, request: socket.socket) -> None:
        """Note that a whole request has arrived on a connection."""
        with self.changed:
            self.reading.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        with self.changed:
            self.reading.pop(request, None)
            self.open.discard(request)
            self.changed.notify_all()

    def service_actions(self) -> None:
        """End the wait for requests that have not arrived in time; called twice a second."""
        oldest = time.monotonic() - self.limits.request_s
        self._end_reading(lambda _, since: since < oldest)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, unless the client has closed the connection."""
        if not isinstance(sys.exception(), OSError):
            log.exception("error while answering %s", client_address)

    def stop(self) -> None:
        """Let ``serve_forever`` return; :meth:`drain` then answers the requests that are left."""
        self.stopping = True
        threading.Thread(target=self.shutdown, daemon=True).start()

    def drain(self, seconds: float) -> bool:
        """Answer the requests that have arrived, then close; return whether all were answered."""
        start, self.timeout, self.accepting = time.monotonic(), 0, True
        deadline, grace = start + seconds, start + min(GRACE_S, seconds)
        # Connections that the operating system has accepted already; others may go on arriving.
        while self.accepting and time.monotonic() < grace:
            self.handle_request()
        self.server_close()
        while time.monotonic() < deadline:
            self._end_reading(
                lambda arriving, since: not arriving and since < time.monotonic() - GRACE_S
            )
            with self.changed:
                if self.changed.wait_for(lambda: not self.open, timeout=0.1):
                    return True
        return not self.open

    def handle_timeout(self) -> None:
        """Note that no further connection waits; called by ``handle_request``."""
        self.accepting = False

    def _end_reading(self, applies: Callable[[bool, float], bool]) -> None:
        """Read no more than what has arrived from some connections."""
        with self.changed:
            chosen = [one for one, state in self.reading.items() if applies(*state)]
        for one in chosen:
            with contextlib.suppress(OSError):  # the client may have closed it
                one.shutdown(socket.SHUT_RD)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "slmc", ""
    default_request_version = "HTTP/1.1"
    """Also what is no HTTP at all is refused with a status line."""
    wbufsize = -1
    """Buffer the response, so that head and body are sent together."""
    server: Server

    def setup(self) -> None:
        """Bound the time of each read and write."""
        super().setup()
        # Longer, since Server.service_actions ends the wait for a request so that it is answered.
        self.connection.settimeout(self.server.limits.request_s + 1)

    def parse_request(self) -> bool:
        """Read the head of a request."""
        self.server.waits(self.connection, arriving=True)
        return super().parse_request()

    def do_POST(self) -> None:
        """Answer a request, in JSON."""
        try:
            self._send(200, self._answer())
        except RequestError as error:
            self._send(error.status, {"error": str(error)}, error.headers)
        except OSError:
            raise  # the client has gone, or is too slow
        except Exception:
            log.exception("%s %s", self.command, self.path)
            self._send(500, {"error": "internal error; the log of the server has the details"})
        self.server.waits(self.connection, arriving=False)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST  # noqa: N815

    def _answer(self) -> dict[str, Any]:
        body = self._body()
        self.server.arrived(self.connection)
        path, about = self.path.partition("?")[0], self.server.recommender.about
        if path not in ANSWERS:
            raise RequestError(404, f"{path} does not exist; there are {' and '.join(ANSWERS)}")
        if self.command not in ANSWERS[path]:
            allowed = ", ".join(ANSWERS[path])
            raise RequestError(405, f"{path} answers {allowed} only", Allow=allowed)
        if path == "/health":
            if self.server.stopping:
                raise RequestError(503, "the server is stopping")
            return {"status": "ok", "items": about["num_items"], "engine": about["engine"]}
        request = Request.parse(body)
        if not self.server.queue.acquire(blocking=False):
            raise RequestError(503, "too many requests wait; try again", **{"Retry-After": "1"})
        try:
            return self.server.recommender.recommend(request)
        finally:
            self.server.queue.release()

    def _body(self) -> bytes:
        """Read the body; raises :class:`RequestError`, before reading if it is too large."""
        lengths, largest = self.headers.get_all("Content-Length", []), self.server.limits.body_bytes
        if "Transfer-Encoding" in self.headers or (self.command == "POST" and not lengths):
            raise self._unread(411, "send the body with a Content-Length")
        if not lengths:
            return b""
        if len(set(lengths)) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise self._unread(400, f"Content-Length: {', '.join(lengths)} is not one number")
        if len(lengths[0]) > 18 or int(lengths[0]) > largest:
            raise self._unread(413, f"the body is too large: at most {largest} bytes are accepted")
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            raise self._unread(400, f"the body has ended after {len(body)} of {lengths[0]} bytes")
        return body

    def _unread(self, status: int, message: str) -> RequestError:
        """The error for a request after which the connection must be closed."""
        self.close_connection = True
        return RequestError(status, message)

    def _send(self, status: int, content: object, headers: Mapping[str, str] | None = None) -> None:
        try:
            body = f"{json.dumps(content, ensure_ascii=False)}\n".encode()
        except UnicodeEncodeError:  # an unknown id has half of a surrogate pair
            body = f"{json.dumps(content)}\n".encode()
        closing = self.close_connection or self.server.stopping
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in {
            **(headers or {}),
            **({"Connection": "close"} if closing else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what ``http.server`` itself refuses, such as an unknown method."""
        self.close_connection = True
        self._send(code, {"error": message or self.responses[code][0]})

    def finish(self) -> None:
        """Send what is left; read the rest of a refused body, since closing would discard both."""
        super_finish, until = super().finish, time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_S)
            while time.monotonic() < until and self.rfile.read1(2**16):
                continue
        super_finish()

    def log_message(self, format: str, *args: object) -> None:
        """Log a request, with ``--access-log``."""
        log.debug("%s %s", self.address_string(), format % args)


def is_healthy(host: str, port: int) -> bool:
    """Return whether the server at an address answers ``GET /health`` with 200."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def serve(server: Server, drain_s: float) -> int:
    """Answer until SIGTERM or SIGINT; return 0 if every request that had arrived was answered."""
    received: list[str] = []

    def stop(number: int, _: FrameType | None) -> None:
        # It must not log: the signal may have interrupted a line of the log, which is an error.
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
        received.append(signal.Signals(number).name)
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    about, (host, port) = server.recommender.about, server.server_address[:2]
    log.info("%d items, listening on http://%s:%d", about["num_items"], host, port)
    server.serve_forever()
    log.info("%s: answering the requests that have arrived", received[0])
    if server.drain(drain_s):
        return 0
    log.error("%d connections were still open after %g s", len(server.open), drain_s)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, load the engine, and serve; returns the exit code."""
    parser = argparse.ArgumentParser(description="Serve the recommender of this folder.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address; 0.0.0.0: all of this machine's")
    add("--port", type=int, default=8000, help="0: any free port")
    add("--threads", type=int, default=1, help="threads of one answer; answers run concurrently")
    add("--queue", type=int, default=Limits.queue, help="requests at a time; others get 503")
    add("--body-bytes", type=int, default=Limits.body_bytes, help="largest body")
    add("--request-s", type=float, default=Limits.request_s, help="seconds for sending a request")
    add("--drain-s", type=float, default=8.0, help="seconds for open requests after SIGTERM")
    add("--access-log", action="store_true", help="log every request")
    add("--health", action="store_true", help="exit 0 if a running server answers, else 1")
    given = parser.parse_args(arguments)
    if given.health:
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(given.host, given.host)
        return 0 if is_healthy(local, given.port) else 1
    if min(given.threads, given.queue, given.body_bytes) < 1 or given.request_s <= 0:
        parser.error("--threads, --queue, --body-bytes and --request-s must be positive")
    level = logging.DEBUG if given.access_log else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    # A process of number 1, as in a container, ignores SIGTERM unless it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        recommender = Recommender(threads=given.threads)
        limits = Limits(given.body_bytes, given.request_s, given.queue)
        server = Server((given.host, given.port), recommender, limits)
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        sys.stderr.write(f"error: {given.host}:{given.port}: {why}.\n  Choose another --port.\n")
        return 2
    return serve(server, given.drain_s)


if __name__ == "__main__":
    sys.exit(main())
