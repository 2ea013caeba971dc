"""Counts and times for Prometheus, in a registry of their own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
HISTORIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        """Begin to count."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def named(name: str) -> str:
            return f"slmc_{name}"

        self.requests = Counter(
            named("requests"), "Answered requests", ["route", "status", "engine"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            named("request_seconds"), "Time from the head of a request to its answer",
            ["route", "engine"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.compute = Histogram(
            named("compute_seconds"), "Time of a call of the engine",
            ["engine"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.histories = Histogram(
            named("batch_histories"), "Histories of a call of the engine",
            ["engine"], buckets=HISTORIES, registry=self.registry,
        )  # fmt: skip
        self.queue = Gauge(
            named("queue_length"), "Requests that are computed or wait for it",
            ["engine"], registry=self.registry,
        )  # fmt: skip
        self.rejected = Counter(
            named("rejected"),
            "Requests without an answer: queue_full, deadline, disconnected, body_too_large, "
            "too_slow, token, stopping",
            ["reason"], registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter(
            named("reloads"), "Reloads of an engine: changed, unchanged, failed",
            ["engine", "result"], registry=self.registry,
        )  # fmt: skip
        self.info = Gauge(
            named("engine_info"), "1 for the engine that is served",
            ["engine", "digest", "precision"], registry=self.registry,
        )  # fmt: skip

    def watch_queue(self, engine: str, length: Callable[[], float]) -> None:
        """Read the length of a queue when the metrics are read."""
        self.queue.labels(engine).set_function(length)

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)
