"""A connection: uvicorn's, with bounds on time and size where it has none."""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

CONNECTIONS = 1024
"""Largest number of open connections; further ones are closed."""
HEAD_BYTES = 64 * 1024
"""Largest head of a request."""
HALF_CLOSE_S = 0.1
"""A client that closes its sending side this soon after its request still reads the answer; one
that closes later has gone."""


class Connection(HttpToolsProtocol):
    """Closes connections that are too slow, and answers a client that only half closes its own."""

    request_s = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.seen = self.loop.time()
        """When the last bytes came."""
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        # Every byte that the client does not read starts the timer of pause_writing.
        transport.set_write_buffer_limits(0)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Read bytes of a request."""
        self.seen = self.loop.time()
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self.busy:
            return
        if self._head_bytes > HEAD_BYTES:
            self.refuse(431, f"the head of the request has more than {HEAD_BYTES} bytes")
        else:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head has arrived: its body and answer have their own limits."""
        if self._head is not None:
            self._head.cancel()
            self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next byte belongs to another head."""
        self._head_bytes = 0
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of a body have their own limit."""
        self._head_bytes = 0
        super().on_body(body)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection open for the answer, if the client has closed with its request."""
        soon = self.loop.time() - self.seen < HALF_CLOSE_S
        if not soon or not self.busy or self.cycle.more_body:
            return None
        (self.pipeline[0][0] if self.pipeline else self.cycle).keep_alive = False
        return True

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(self.request_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self.refuse(400, msg)

    def refuse(self, status: int, message: str) -> None:
        """Send an error, and close."""
        body = json.dumps({"error": message}).encode()
        head = (
            b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.request_s, self._too_slow)

    def _too_slow(self) -> None:
        self._head = None
        if self.transport.is_closing() or self.busy:
            return
        if self._head_bytes:
            self.refuse(408, f"the request has not arrived within {self.request_s:g} s")
        else:
            self.transport.close()
