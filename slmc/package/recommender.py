"""The recommender of a package: original ids in; ids, titles and scores out.

It needs onnxruntime, numpy and the standard library::

    from recommender import Recommender, Request
    Recommender().recommend(Request(["50", "181"], k=3))

Letters: V items, k returned items.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


class RequestError(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        """Store the HTTP status, the message and further headers of the response."""
        super().__init__(message)
        self.status, self.headers = status, headers


class StartError(Exception):
    """A package that cannot be used here: what is wrong, and how to fix it, in two lines."""


@dataclass(frozen=True)
class Request:
    """The body of ``POST /recommend``."""

    history: list[str]
    """Original ids, oldest first. Ids that are not in ``items.jsonl`` are skipped."""
    k: int | None = None
    """Number of items; by default 10, or all that the engine returns."""
    exclude_seen: bool = False
    """Leave out the items of the history."""
    allow: list[str] | None = None
    """Return only items with these ids."""
    deny: list[str] | None = None
    """Leave out items with these ids."""

    @classmethod
    def parse(cls, body: bytes) -> "Request":
        """Read a JSON object; raises :class:`RequestError` (400) that names the wrong field."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise RequestError(400, 'the body is not a JSON object such as {"history": ["50"]}')
        known = cls.__dataclass_fields__
        for name in fields:
            if name not in known:
                raise RequestError(400, f"{name}: unknown field; known: {', '.join(known)}")
        if "history" not in fields:
            raise RequestError(400, "history: missing; an empty list is a user without a history")
        k, exclude_seen = fields.get("k"), fields.get("exclude_seen", False)
        if k is not None and (isinstance(k, bool) or not isinstance(k, int)):
            raise RequestError(400, f"k: expected a whole number, not {_shown(k)}")
        if not isinstance(exclude_seen, bool):
            raise RequestError(
                400, f"exclude_seen: expected true or false, not {_shown(exclude_seen)}"
            )
        lists = {
            name: _ids(name, fields[name])
            for name in ("history", "allow", "deny")
            if name == "history" or fields.get(name) is not None
        }
        return cls(k=k, exclude_seen=exclude_seen, **lists)


def _ids(name: str, value: object) -> list[str]:
    """The ids of a list as text, as ``items.jsonl`` stores them."""
    if not isinstance(value, list):
        raise RequestError(400, f"{name}: expected a list of ids, not {_shown(value)}")
    for place, one in enumerate(value):
        # A float is refused: 50.0 could stand for "50" or "50.0".
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise RequestError(
                400, f"{name}[{place}]: expected text or a whole number, not {_shown(one)}"
            )
    return [str(one) for one in value]


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


class Recommender:
    """The engine, its vocabulary and the popularity of the items."""

    def __init__(self, folder: Path = FOLDER, *, threads: int = 1) -> None:
        """Check the files of ``folder``, and open a session.

        Args:
            folder: The package.
            threads: Threads that compute one answer.

        Raises:
            StartError: A file is missing or has changed, or a library is missing.
        """
        self.about = checked(folder)
        try:
            import numpy
            import onnxruntime
        except ImportError as error:
            raise StartError(
                f"{error.name} cannot be imported.\n  Run `pip install -r requirements.txt`."
            ) from None
        with (folder / "items.jsonl").open(encoding="utf-8") as lines:
            items = [json.loads(line) for line in lines]
        self.ids = [item["item"] for item in items]
        self.titles = [item.get("title") for item in items]
        self.counts = [item["count"] for item in items]
        self.row_of = {item: row for row, item in enumerate(self.ids, start=1)}
        by_count = sorted(range(len(items)), key=lambda index: -self.counts[index])
        self.popular = [index + 1 for index in by_count]
        """Rows, the most popular item first."""
        self.numpy, options = numpy, onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take cores from other requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without VNNI, sums of two 8-bit products saturate at 16 bits unless this is set.
        options.add_session_config_entry("session.x64quantprecision", "1")
        # Where no mask is requested, this graph computes the same as model.onnx.
        graph = str(folder / "onnx/masked.onnx")
        try:
            self.session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise StartError(
                f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot open it: "
                f"{str(error).splitlines()[0]}\n  Run `pip install -r requirements.txt`."
            ) from None
        # More answers at a time than cores would only make each of them slower.
        self.free = threading.BoundedSemaphore(max(1, cores() // threads))

    def recommend(self, request: Request) -> dict[str, Any]:
        """Return the best items for a request, as JSON data.

        ``by`` is ``model``, or ``popular`` for a user without a known item: then the score
        is the number of training interactions of the item.

        Raises:
            RequestError: ``k`` is out of range.
        """
        top_k, number = self.about["top_k"], len(self.ids)
        k = min(10, top_k) if request.k is None else request.k
        if k < 1 or k > top_k < number:
            raise RequestError(400, f"k: {k} is out of range; this engine returns 1 to {top_k}")
        rows = [self.row_of[item] for item in request.history if item in self.row_of]
        allowed = self._allowed(request, rows)
        if rows:
            best = self._best(rows[-self.about["history"] :], allowed)
        else:
            of_user = self.popular if allowed is None else [r for r in self.popular if allowed[r]]
            best = [(row, float(self.counts[row - 1])) for row in of_user[:k]]
        return {
            "items": [
                {"item": self.ids[row - 1], "title": self.titles[row - 1], "score": score}
                for row, score in best[:k]
            ],
            "by": "model" if rows else "popular",
            "unknown": list(dict.fromkeys(i for i in request.history if i not in self.row_of)),
        }

    def _allowed(self, request: Request, rows: Sequence[int]) -> Any:
        """Which rows may be returned, bool ``[V + 1]``; None if all may."""
        if request.allow is None and not request.deny and not (request.exclude_seen and rows):
            return None
        allowed = self.numpy.full(len(self.ids) + 1, request.allow is None)
        for ids, value in ((request.allow or (), True), (request.deny or (), False)):
            allowed[[self.row_of[item] for item in ids if item in self.row_of]] = value
        if request.exclude_seen:  # also items that are too old for the model to read
            allowed[list(rows)] = False
        return allowed

    def _best(self, rows: Sequence[int], allowed: Any) -> list[tuple[int, float]]:
        """Rows and scores of the best items for a history of rows."""
        mask = [[True]] if allowed is None else [allowed]
        inputs = {
            "item_ids": self.numpy.array([rows], dtype=self.numpy.int64),
            "exclude_seen": self.numpy.zeros(1, dtype=bool),
            "allowed": self.numpy.array(mask, dtype=bool),
        }
        with self.free:
            items, scores = self.session.run(["top_items", "top_scores"], inputs)
        best = zip(items[0].tolist(), scores[0].tolist(), strict=True)
        return [(row, score) for row, score in best if score > float("-inf")]


def checked(folder: Path) -> dict[str, Any]:
    """Return the content of ``package.json``; raises :class:`StartError` if a file differs."""
    file = folder / "package.json"
    try:
        about = json.loads(file.read_bytes())
        hashes: Mapping[str, str] = about["files"]
        for name, expected in hashes.items():
            file = folder / name
            with file.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                    raise StartError(f"{file} has changed.\n  Copy the package again.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or "not valid"
        raise StartError(f"{file}: {why}.\n  Copy the package again.") from None
    return dict(about)


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
