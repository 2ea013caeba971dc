"""The engines of a server: opened, searched, reloaded, watched."""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slmc.errors import SlmcError
from slmc.export.runtime.engine import cores
from slmc.pipeline import saved_run
from slmc.server.answering import Opened
from slmc.server.batching import Batcher
from slmc.server.metrics import Metrics
from slmc.server.requests import EngineInfo, RequestError
from slmc.server.search import Search
from slmc.server.settings import Settings
from slmc.serving.opening import last_served

WATCH_S = 1.0
"""Seconds between two looks at the paths of the engines."""
SEARCHES = 64
"""Searches that are computed or wait for it."""

Identity = tuple[str, tuple[tuple[str, int, int], ...]]

log = logging.getLogger("slmc.serve")


@dataclass(frozen=True)
class Current:
    """An engine and the search in its titles; replaced as a whole by a reload."""

    opened: Opened
    search: Search


class Slot:
    """A name under which an engine is served; a reload changes the engine."""

    def __init__(self, name: str, path: Path, settings: Settings, metrics: Metrics) -> None:
        """Open the engine at a path; raises as :meth:`Opened.open`."""
        self.name, self.path, self._metrics = name, path, metrics
        self._calls = settings.threads or cores()
        self._reloading = asyncio.Lock()
        self.tried = identity(path)
        """What was at the path at the last try to open it."""
        self.current = self._open()
        self._note_info()
        self.batcher = Batcher(name, lambda: self.current.opened, settings, metrics, self._calls)

    @property
    def opened(self) -> Opened:
        """The engine that is served now."""
        return self.current.opened

    def info(self) -> EngineInfo:
        """What ``GET /engines`` says about it."""
        opened = self.opened
        return EngineInfo(
            name=self.name, precision=opened.about.precision, items=opened.about.num_items,
            history=opened.about.history, top_k=opened.about.top_k, model=opened.about.source,
            digest=opened.artefact.digest, size_mb=round(opened.size_mb, 3),
            loaded=opened.loaded.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )  # fmt: skip

    async def reload(self) -> bool:
        """Open what is at the path now, then serve it; return whether it is another engine.

        Requests that wait are answered by the new engine. The old one is freed when its last call
        has ended.

        Raises:
            SlmcError: The new engine cannot be used; the old one is served on.
        """
        async with self._reloading:
            self.tried = await asyncio.to_thread(identity, self.path)
            try:
                new = await asyncio.to_thread(self._open)
            except Exception as error:
                self._metrics.reloads.labels(self.name, "failed").inc()
                known = isinstance(error, SlmcError)
                log.error(
                    "%s was not reloaded, the engine %s is served on: %s",
                    self.name, self.opened.version, error if known else f"{error!r}",
                )  # fmt: skip
                raise
            old, changed = self.opened, new.opened.artefact.digest != self.opened.artefact.digest
            self._metrics.reloads.labels(self.name, "changed" if changed else "unchanged").inc()
            if changed:
                self._metrics.info.remove(self.name, old.artefact.digest, old.about.precision)
                self.current = new
                self._note_info()
                log.info("%s: reloaded, %s -> %s", self.name, old.version, new.opened.version)
            else:
                log.info("%s: reloaded, still %s", self.name, old.version)
            return changed

    def _open(self) -> Current:
        opened = Opened.open(self.path, self._calls)
        search = Search(opened.catalogue)
        search.find("", 1)
        return Current(opened, search)

    def _note_info(self) -> None:
        digest, precision = self.opened.artefact.digest, self.opened.about.precision
        self._metrics.info.labels(self.name, digest, precision).set(1)


class Engines:
    """All engines of a server, by name; the first one is the default."""

    def __init__(self, paths: Mapping[str, Path], settings: Settings) -> None:
        """Open every engine; raises as :meth:`Opened.open`."""
        self.settings, self.metrics = settings, Metrics()
        self.stopping = False
        self.slots = {
            name: Slot(name, path, settings, self.metrics) for name, path in paths.items()
        }
        self._searches = 0
        self._watching: asyncio.Task[None] | None = None

    def slot(self, name: str | None) -> Slot:
        """An engine by its name; raises :class:`RequestError` (404) if there is none."""
        if name is None:
            return next(iter(self.slots.values()))
        if name not in self.slots:
            names = ", ".join(self.slots)
            raise RequestError(404, f"engine: there is no engine {name[:64]!r}; there are {names}")
        return self.slots[name]

    async def find(self, name: str | None, query: str, limit: int) -> list[dict[str, str | None]]:
        """Search the items of an engine, in a thread; raises :class:`RequestError`."""
        search = self.slot(name).current.search
        if self._searches >= SEARCHES:
            self.metrics.rejected.labels("queue_full").inc()
            raise RequestError(429, "too many searches wait; try again", **{"Retry-After": "1"})
        self._searches += 1
        try:
            return await asyncio.to_thread(search.find, query, limit)
        finally:
            self._searches -= 1

    def start(self) -> None:
        """Begin to compute, and with ``--watch`` to look at the paths."""
        for slot in self.slots.values():
            slot.batcher.start()
        if self.settings.watch:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """End the worker threads."""
        if self._watching is not None:
            self._watching.cancel()
        for slot in self.slots.values():
            await slot.batcher.close()

    async def reload_all(self) -> None:
        """Reload every engine; what cannot be used is logged."""
        for slot in self.slots.values():
            await _tried(slot)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for slot in self.slots.values():
                if await asyncio.to_thread(identity, slot.path) != slot.tried:
                    await _tried(slot)


async def _tried(slot: Slot) -> None:
    try:
        await slot.reload()
    except Exception:
        log.debug("the reload of %s has failed", slot.name, exc_info=True)


def identity(path: Path) -> Identity | None:
    """What is at a path: the folder that it leads to, and its files with their times and sizes.

    None if nothing can be read there.
    """
    try:
        folder = path.expanduser()
        folder = last_served(folder) if saved_run.is_run(folder) else folder
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        stats = [(str(file.relative_to(folder)), file.stat()) for file in files]
        listed = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
        return os.path.realpath(folder), listed
    except (OSError, SlmcError):
        return None
