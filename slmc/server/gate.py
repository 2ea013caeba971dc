"""What every request passes: the token, the limits of its body, the end of its client, the count.

It is an ASGI application around the routes.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from slmc.server.engines import Engines
from slmc.server.requests import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/page.js", "/page.css", "/health", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token."""
LINGER_S = 2.0
"""Seconds for which a refused body is still read, so that the client can read the refusal."""
ENGINE = "slmc.engine"
"""Entry of a scope: the name of the engine, for the metrics."""
RECEIVED = "slmc.received"
"""Entry of a scope: when the head had arrived, by ``time.perf_counter``."""

log = logging.getLogger("slmc.serve")


class Gate:
    """Passes requests on to the routes."""

    def __init__(self, app: App, engines: Engines) -> None:
        """Take the routes."""
        self._app, self._engines = app, engines
        self._settings, self._metrics = engines.settings, engines.metrics
        self.unanswered = 0
        """Requests whose computation was cut off by the end of the server."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[RECEIVED] = time.perf_counter()
        response = _Response(send, self._engines)
        try:
            _check_token(scope, self._settings.token)
            body = await self._body(scope, receive)
            await self._answer(scope, body, receive, response)
        except RequestError as error:
            await self._refuse(error, receive, response)
        except _ClientGoneError:
            self._metrics.rejected.labels("disconnected").inc()
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not response.status:
                await response.fail(500, "internal error; the log of the server has the details")
        if response.status:
            self._count(scope, response.status)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body; raises :class:`RequestError` if it is too large or too slow."""
        headers, largest = dict(scope["headers"]), self._settings.body_bytes
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestError(415, "send the body without Content-Encoding")
        length = headers.get(b"content-length", b"0")
        too_large = RequestError(413, f"the body is too large: at most {largest} bytes")
        if int(length) > largest:
            raise too_large
        if length == b"0" and b"transfer-encoding" not in headers:
            return b""
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._settings.request_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    parts.append(part)
                    size += len(part)
                    if size > largest:
                        raise too_large
        except TimeoutError:
            seconds = self._settings.request_s
            raise RequestError(408, f"the body has not arrived within {seconds:g} s") from None
        return b"".join(parts)

    async def _answer(
        self, scope: Scope, body: bytes, receive: Receive, response: "_Response"
    ) -> None:
        """Run the route; cancel it if the client goes before the answer."""
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        if scope["method"] != "POST":
            await self._app(scope, replay, response)
            return
        loop = asyncio.get_running_loop()
        route = loop.create_task(_awaited(self._app(scope, replay, response)))
        gone = loop.create_task(_gone(receive))
        try:
            await asyncio.wait((route, gone), return_when=asyncio.FIRST_COMPLETED)
            if not route.done() and not response.complete:
                raise _ClientGoneError
            await route
        except asyncio.CancelledError:
            self.unanswered += 1
            raise
        finally:
            for task in (route, gone):
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _refuse(self, error: RequestError, receive: Receive, response: "_Response") -> None:
        """Send a refusal; read what is left of the body, since closing would discard both."""
        reason = {413: "body_too_large", 408: "too_slow", 401: "token"}.get(error.status)
        if reason is not None:
            self._metrics.rejected.labels(reason).inc()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await response.fail(error.status, error.message, error.headers, end=False)
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        break
        await response({"type": "http.response.body", "body": b"", "more_body": False})

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        engine = scope.get(ENGINE, "")
        self._metrics.requests.labels(route, str(status), engine).inc()
        seconds = time.perf_counter() - scope[RECEIVED]
        self._metrics.seconds.labels(route, engine).observe(seconds)


class _ClientGoneError(Exception):
    """The client has closed the connection."""


class _Response:
    """Sends a response, and knows how far it is."""

    def __init__(self, send: Send, engines: Engines) -> None:
        self._send, self._engines = send, engines
        self.status, self.complete = 0, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            if self._engines.stopping:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        elif not message.get("more_body"):
            self.complete = True
        await self._send(message)

    async def fail(
        self, status: int, text: str, headers: Mapping[str, str] | None = None, *, end: bool = True
    ) -> None:
        """Send an error, and close the connection after it."""
        body = json.dumps({"error": text}).encode()
        fields = {
            "content-type": "application/json", "content-length": str(len(body)),
            "connection": "close", **(headers or {}),
        }  # fmt: skip
        listed = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await self({"type": "http.response.start", "status": status, "headers": listed})
        await self({"type": "http.response.body", "body": body, "more_body": not end})


def _check_token(scope: Scope, token: bytes | None) -> None:
    if token is None or (scope["path"] in OPEN and scope["method"] in ("GET", "HEAD")):
        return
    given = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, value = given.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(value.strip(), token):
        challenge = {"WWW-Authenticate": "Bearer"}
        raise RequestError(401, "send the token: Authorization: Bearer TOKEN", **challenge)


async def _gone(receive: Receive) -> None:
    """Wait for the end of the client, or of the response."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _awaited(call: Awaitable[None]) -> None:
    await call
