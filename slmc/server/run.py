"""The process of the server: its socket, its signals, and its end."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from slmc.errors import UsageError
from slmc.server.app import make_app
from slmc.server.connection import Connection
from slmc.server.engines import Engines
from slmc.server.gate import Gate
from slmc.server.settings import Settings

BACKLOG = 1024
QUIET_S = 0.5
"""After SIGTERM a connection is closed once nothing has come on it for this time."""
TICK_S = 0.02

log = logging.getLogger("slmc.serve")


def serve(paths: Mapping[str, Path], settings: Settings, listening: Callable[[str], None]) -> int:
    """Serve engines until SIGTERM or SIGINT.

    Args:
        paths: Name -> path of an engine.
        settings: Limits.
        listening: Called with the URL when requests are accepted.

    Returns:
        0 if every request that had arrived was answered, else 1.

    Raises:
        SlmcError: An engine cannot be opened, or the address cannot be used.
    """
    with bound(settings) as listener:
        return asyncio.run(_serve(paths, settings, listener, listening))


async def _serve(
    paths: Mapping[str, Path], settings: Settings, listener: socket.socket,
    listening: Callable[[str], None],
) -> int:  # fmt: skip
    engines = Engines(paths, settings)
    gate = Gate(make_app(engines), engines)
    server = Server(engines, gate, settings)
    with server.signals(listener):
        running = asyncio.get_running_loop().create_task(server.serve([listener]))
        while not server.started and not running.done():
            await asyncio.sleep(TICK_S)
        if server.started:
            for slot in engines.slots.values():
                info = slot.info()
                log.info(
                    "%s: %s items, %s, %.1f MB, engine %s",
                    slot.name, f"{info.items:,}", info.precision, info.size_mb, info.digest[:12],
                )  # fmt: skip
            listening(url(listener))
        await running
    if gate.unanswered:
        log.error("%d requests had no answer after %g s", gate.unanswered, settings.drain_s)
    return 1 if gate.unanswered else 0


class Server(uvicorn.Server):
    """uvicorn's server, which ends only after what has arrived was answered."""

    def __init__(self, engines: Engines, gate: Gate, settings: Settings) -> None:
        """Take the application."""
        http = type("LimitedConnection", (Connection,), {"request_s": settings.request_s})
        super().__init__(
            uvicorn.Config(
                gate, http=http, ws="none", lifespan="on", log_config=None, access_log=False,
                proxy_headers=False, server_header=False, backlog=BACKLOG,
            )
        )  # fmt: skip
        self._engines, self._settings = engines, settings
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: :meth:`signals` handles them, so that the process ends with exit 0."""
        yield

    @contextmanager
    def signals(self, listener: socket.socket) -> Iterator[None]:
        """SIGTERM and SIGINT end the server, a second one at once; SIGHUP reloads the engines."""
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            for one in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(one)
                signal.signal(one, signal.SIG_DFL)
            log.info("%s: answering the requests that have arrived", number.name)
            self._start(self._drain(listener))

        previous = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, stop, one)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self._engines.reload_all()))
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            for one, handler in previous.items():
                loop.remove_signal_handler(one)
                signal.signal(one, handler)

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, listener: socket.socket) -> None:
        """Accept what has connected, answer it, close quiet connections; then end."""
        end = time.monotonic() + self._settings.drain_s
        self._engines.stopping = True  # answers close their connections from now on
        listener.listen(0)
        await asyncio.sleep(2 * TICK_S)  # connections that the system has accepted already
        for server in self.servers:
            server.close()
        while time.monotonic() < end and any(map(self._active, self.server_state.connections)):
            await asyncio.sleep(TICK_S)
        left = max(end - time.monotonic(), 0.1)
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]
        self.should_exit = True

    def _active(self, connection: object) -> bool:
        """Whether a request is answered on a connection, or might still be on its way."""
        assert isinstance(connection, Connection)
        quiet = asyncio.get_running_loop().time() - connection.seen > QUIET_S
        return connection.busy or not quiet


@contextmanager
def bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket at the address of the settings; raises ``UsageError`` if it cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(
                f"{settings.host}:{settings.port}: {why}.", "Choose another --host or --port."
            ) from None
        yield listener


def url(listener: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
