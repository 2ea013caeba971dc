"""An engine in ONNX Runtime: histories in, the best items out. No torch here.

Letters: B histories, k items given back, V items.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slmc import artefact
from slmc.artefact import Artefact
from slmc.data.batches import pad_left
from slmc.errors import ArtefactError, MissingError
from slmc.export.config import HALVES
from slmc.export.graph.interface import ALLOWED, EXCLUDE_SEEN, INPUT, SCORES, TOP_ITEMS, TOP_SCORES
from slmc.export.graph.outputs import ensure_scores
from slmc.export.runtime.pages import large_pages

GRAPH, MASKED = "onnx/model.onnx", "onnx/masked.onnx"
"""The graph of histories alone, and the one that takes masks too, which reads the same weights."""
SERVING = ("onnx/", "items.jsonl", "preprocessor.json")
"""Files that serving an engine needs: what ``size_mb`` counts."""
SPIN_US = 100
"""Microseconds that a thread which may spin waits for its next part before it sleeps: longer than
what one thread does alone between two products, too short to take much of a core from others. A
version of ONNX Runtime that does not know the entry spins as long as the answer takes."""

CPU, GPU = "CPUExecutionProvider", "CUDAExecutionProvider"
NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: *")
"""What ONNX Runtime says before what is wrong."""

Histories = Sequence[NDArray[np.int32]]


@dataclass(frozen=True)
class Description:
    """What ``engine.json`` says of a graph."""

    layout: str
    top_k: int
    opset: int
    precision: str
    history: int
    num_items: int
    source: str
    """Digest of the model that it was made from."""


class Engine:
    """A session on the graph of an engine."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        scores: bool = False,
        spinning: bool = False,
    ) -> None:
        """Start a session; :meth:`open` checks the hashes of a sealed engine first.

        Args:
            folder: Directory of the engine.
            threads: Threads of one answer; all cores that this process may use if not given.
            scores: Give out the scores of the whole catalogue too, for :meth:`scores`.
            spinning: As :func:`session_options`.

        Raises:
            ArtefactError: ONNX Runtime cannot run the graph, or it is not an engine's.
            MissingError: onnxruntime is not installed, or has no GPU for the graph.
        """
        self.folder, self.file = folder, folder / GRAPH
        self.described = describe(folder)
        rows = self.described.num_items + 1
        graph = _with_scores(self.file, rows) if scores else str(self.file)
        self._options = session_options(threads or cores(), self.file.parent, spinning=spinning)
        self.session = self._opened(self.file, graph, {INPUT: "tensor(int64)"})

    @classmethod
    def open(cls, engine: Artefact | Path, **options: Any) -> Self:
        """Start a session on a sealed engine; a path is checked against its hashes first."""
        sealed = engine if isinstance(engine, Artefact) else artefact.load(engine, kind="engine")
        return cls(sealed.path, **options)

    def top(
        self,
        histories: Histories,
        *,
        exclude_seen: bool = False,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best items of each history.

        Args:
            histories: Rows in 1..V, oldest first; the newest ``history`` of each count.
            exclude_seen: Leave out the items of each history, so far as it counts. The first call
                with a mask opens a second session.
            allowed: ``[1, V + 1]`` or ``[B, V + 1]``, which rows may be given; entry 0 is none.

        Returns:
            Rows ``[B, k]``, best first, of equal ones the smaller first; scores ``[B, k]``,
            -inf where fewer than k items may be given.
        """
        return self.answer(self.padded(histories), exclude_seen=exclude_seen, allowed=allowed)

    def answer(
        self,
        item_ids: NDArray[np.int64],
        *,
        exclude_seen: bool = False,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As :meth:`top`, for rows ``[B, L]`` padded with 0 on the left."""
        asked: dict[str, NDArray[Any]] = {INPUT: self._checked(item_ids)}
        if not exclude_seen and allowed is None:
            items, scores = self._run(self.session, self.file, [TOP_ITEMS, TOP_SCORES], asked)
            return items, scores
        if allowed is None:
            allowed = np.ones((1, 1), dtype=bool)
        elif allowed.shape not in [(n, self.described.num_items + 1) for n in (1, len(item_ids))]:
            raise ValueError(
                f"allowed must have 1 or {len(item_ids)} rows and {self.described.num_items + 1} "
                "columns"
            )
        asked |= {EXCLUDE_SEEN: np.array([exclude_seen]), ALLOWED: allowed}
        file = self.folder / MASKED
        items, scores = self._run(self._masked, file, [TOP_ITEMS, TOP_SCORES], asked)
        return items, scores

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Scores ``[B, V]`` of the rows 1..V; only of a session with ``scores=True``.

        Those of the best items are what the engine gives of them, and all others are lower or
        tied: an engine that scores items twice ranks by its second scores.
        """
        asked = {INPUT: self._checked(self.padded(histories))}
        outputs = [SCORES, TOP_ITEMS, TOP_SCORES]
        scores, items, best = self._run(self.session, self.file, outputs, asked)
        scores = scores[: len(histories)]  # the graph computes one where there is none
        last = best[:, -1:]
        np.copyto(scores, np.nextafter(last, -np.inf), where=scores > last)
        np.put_along_axis(scores, items, best, axis=1)
        return scores[:, 1:]

    def padded(self, histories: Histories) -> NDArray[np.int64]:
        """``[B, L]`` the newest items of each history, L that of the longest."""
        longest = max((rows.size for rows in histories), default=1)
        # A history without items is one item of padding, as in the model.
        return pad_left(histories, max(1, min(longest, self.described.history)))

    @cached_property
    def _masked(self) -> Any:
        """The session with masks: most engines are never asked for it."""
        inputs = {INPUT: "tensor(int64)", EXCLUDE_SEEN: "tensor(bool)", ALLOWED: "tensor(bool)"}
        file = self.folder / MASKED
        return self._opened(file, str(file), inputs)

    def _opened(self, file: Path, graph: str | bytes, inputs: Mapping[str, str]) -> Any:
        """A session on a graph that takes these inputs and gives the best items."""
        runtime, wanted_providers = needed("onnxruntime"), providers(self.described.precision)
        with _Told(file), large_pages():
            session = runtime.InferenceSession(graph, self._options, providers=wanted_providers)
        taken = {value.name: value.type for value in session.get_inputs()}
        given = {value.name: value.type for value in session.get_outputs()}
        best = {TOP_ITEMS: "tensor(int64)", TOP_SCORES: "tensor(float)"}
        if taken != inputs or not best.items() <= given.items():
            raise ArtefactError(
                f"{file}: the graph does not take {', '.join(inputs)} and give {TOP_ITEMS} and "
                f"{TOP_SCORES}.",
                "Make the engine again with `slmc export`.",
            )
        return session

    def _checked(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if item_ids.size and not 0 <= item_ids.min() <= item_ids.max() <= self.described.num_items:
            raise ValueError(f"rows must lie in 1..{self.described.num_items}")
        return item_ids

    def _run(
        self, session: Any, file: Path, outputs: list[str], asked: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        with _Told(file):
            found: list[NDArray[Any]] = session.run(outputs, dict(asked))
        return found


def describe(folder: Path) -> Description:
    """What an engine says of itself; raises :class:`ArtefactError` if it does not."""
    file = folder / "engine.json"
    try:
        said = json.loads(file.read_bytes())
        return Description(**{name: said[name] for name in Description.__annotations__})
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(
            f"{file} does not describe an engine that this slmc can run.",
            "Make the engine again with `slmc export`.",
        ) from None


def wanted(precision: str) -> list[str]:
    """Where ONNX Runtime is to compute: 16 bits on a GPU if it has one, the rest on the CPU."""
    return [GPU, CPU] if precision in HALVES else [CPU]


def providers(precision: str) -> list[str]:
    """Those of :func:`wanted` that this ONNX Runtime has.

    Raises:
        MissingError: The precision is bf16, and ONNX Runtime has no GPU to multiply it on.
    """
    there = needed("onnxruntime").get_available_providers()
    found = [provider for provider in wanted(precision) if provider in there]
    if precision == "bf16" and GPU not in found:
        raise MissingError(
            "precision bf16: ONNX Runtime multiplies it on NVIDIA GPUs alone, and finds none.",
            "Install onnxruntime-gpu in the place of onnxruntime on a machine with a GPU; or take "
            "fp16.",
        )
    return found


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def needed(module: str) -> Any:
    """Import a module of the extra ``onnx``; raises :class:`MissingError` if it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingError(
            f"{module} cannot be imported ({error}).",
            "Install it with `pip install 'slmc[onnx]'`.",
        ) from None


class _Told:
    """Turns what ONNX Runtime raises into an ``ArtefactError`` that names the graph."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        state = needed("onnxruntime.capi.onnxruntime_pybind11_state")
        own = tuple(c for c in vars(state).values() if isclass(c) and issubclass(c, Exception))
        if isinstance(error, own):
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            why = NOISE.sub("", said)
            raise ArtefactError(
                f"{self.file}: ONNX Runtime cannot run it: {why}",
                "Make the engine again with `slmc export`.",
            ) from None


def session_options(threads: int, weights: Path | None = None, *, spinning: bool = False) -> Any:
    """How a session runs.

    Args:
        threads: Of one answer.
        weights: Folder of weights that lie beside a graph which is given as bytes.
        spinning: Let threads spin for :data:`SPIN_US` after each of their parts, while an answer
            is computed, and rest between answers.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what fails is raised; nothing is written to stderr
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI, sums of two products of 8 bits are cut off at 16 bits unless this is set.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if weights is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights)
        )
    return options


def _with_scores(file: Path, rows: int) -> bytes:
    """The graph with the scores ``[B, rows]``, what the best are taken of, as one more output."""
    onnx = needed("onnx")
    try:
        model = onnx.load(file, load_external_data=False)
    except (OSError, needed("google.protobuf.message").DecodeError):
        raise ArtefactError(
            f"{file} is not an ONNX graph.",
            "Make the engine again with `slmc export`.",
        ) from None
    if not ensure_scores(model, rows):
        raise ArtefactError(
            f"{file}: it holds no value {SCORES!r} to take the best of.",
            "Make the engine again with `slmc export`.",
        )
    if any(output.name == SCORES for output in model.graph.output):
        return file.read_bytes()
    value = onnx.helper.make_tensor_value_info(SCORES, onnx.TensorProto.FLOAT, ["batch", "rows"])
    model.graph.output.append(value)
    found: bytes = model.SerializeToString()
    return found
