"""An engine in ONNX Runtime: histories in, the best items out. No torch here.

Letters: B histories, L their padded length, k returned items, V items.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from inspect import isclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from slmc import artefact
from slmc.artefact import Artefact
from slmc.data.batches import pad_left
from slmc.errors import ArtefactError, MissingError
from slmc.export.config import HALVES
from slmc.export.graph.interface import (
    ALLOWED,
    EXCLUDE_SEEN,
    INPUT,
    SCORES,
    TOP_ITEMS,
    TOP_SCORES,
    USER_VECTORS,
)
from slmc.export.graph.outputs import ensure_scores, only_user_vectors
from slmc.export.runtime.pages import large_pages

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

GRAPH, MASKED = "onnx/model.onnx", "onnx/masked.onnx"
"""The graph that takes only histories, and the one with masks, which uses the same weights."""
SERVING = ("onnx/", "items.jsonl", "preprocessor.json")
"""Files that serving an engine needs; ``size_mb`` is their size."""
SPIN_US = 100
"""Microseconds that an idle thread spins for its next task before it sleeps: longer than the serial
work between two matmuls, and short enough to leave cores to other processes. A version of ONNX
Runtime without this entry spins until the answer is complete."""

CPU, GPU = "CPUExecutionProvider", "CUDAExecutionProvider"
NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: *")
"""Prefixes of ONNX Runtime's error messages, which are removed."""
REMEDY = "Run `slmc export` again."

BEST = {TOP_ITEMS: "tensor(int64)", TOP_SCORES: "tensor(float)"}
"""Outputs of the graphs of an engine, and their types."""

Histories = Sequence[NDArray[np.int32]]
Feed = dict[str, NDArray[Any]]
"""Inputs of a graph, by name."""


@dataclass(frozen=True)
class Description:
    """The content of ``engine.json`` about the graph."""

    layout: str
    top_k: int
    opset: int
    precision: str
    history: int
    num_items: int
    source: str
    """Digest of the source model."""


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
        """Open a session; :meth:`open` first checks the hashes of a sealed engine.

        Args:
            folder: Directory of the engine.
            threads: Threads of one call; by default, all cores that this process may use.
            scores: Add the scores of the whole catalogue as an output, for :meth:`scores`.
            spinning: As in :func:`session_options`.

        Raises:
            ArtefactError: ONNX Runtime cannot run the graph, or it is not an engine's graph.
            MissingError: onnxruntime is not installed, or has no GPU for the graph.
        """
        self.folder, self.file = folder, folder / GRAPH
        self.description = read_description(folder)
        rows = self.description.num_items + 1
        graph = _with_scores(self.file, rows) if scores else str(self.file)
        self._options = session_options(threads or cores(), self.file.parent, spinning=spinning)
        self.session = self._open_session(self.file, graph, {INPUT: "tensor(int64)"})

    @classmethod
    def open(
        cls,
        engine: Artefact | Path,
        *,
        threads: int | None = None,
        scores: bool = False,
        spinning: bool = False,
    ) -> Self:
        """Open a session on a sealed engine; the hashes of a path are checked first."""
        sealed = engine if isinstance(engine, Artefact) else artefact.load(engine, kind="engine")
        return cls(sealed.path, threads=threads, scores=scores, spinning=spinning)

    def top(
        self,
        histories: Histories,
        *,
        exclude_seen: bool = False,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items of each history.

        Args:
            histories: Rows in 1..V, oldest first; the engine uses the newest ``history`` of each.
            exclude_seen: Exclude the items of each history that the engine uses. The first call
                with a mask opens a second session.
            allowed: Which rows may be returned, ``[1, V + 1]`` or ``[B, V + 1]``; entry 0 is
                padding.

        Returns:
            Rows ``[B, k]``, best first, ties by the smaller row; scores ``[B, k]``, -inf after the
            last item if fewer than k are allowed.
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
        inputs: Feed = {INPUT: self._checked(item_ids)}
        if not exclude_seen and allowed is None:
            items, scores = self._run(self.session, self.file, [TOP_ITEMS, TOP_SCORES], inputs)
            return items, scores
        columns = self.description.num_items + 1
        if allowed is None:
            allowed = np.ones((1, 1), dtype=bool)
        elif allowed.shape not in [(1, columns), (len(item_ids), columns)]:
            raise ValueError(f"allowed must have 1 or {len(item_ids)} rows and {columns} columns")
        inputs |= {EXCLUDE_SEEN: np.array([exclude_seen]), ALLOWED: allowed}
        file = self.folder / MASKED
        items, scores = self._run(self._masked, file, [TOP_ITEMS, TOP_SCORES], inputs)
        return items, scores

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return the scores ``[B, V]`` of the rows 1..V; needs a session with ``scores=True``.

        The best items have the scores that the engine returns for them, and no other item is
        higher: an engine with a rescored item table ranks by its second scores.
        """
        inputs = {INPUT: self._checked(self.padded(histories))}
        outputs = [SCORES, TOP_ITEMS, TOP_SCORES]
        scores, items, best = self._run(self.session, self.file, outputs, inputs)
        scores = scores[: len(histories)]  # for an empty batch the graph computes one row
        last = best[:, -1:]
        np.copyto(scores, np.nextafter(last, -np.inf), where=scores > last)
        np.put_along_axis(scores, items, best, axis=1)
        return scores[:, 1:]

    def user_vectors(self, item_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the user vectors ``[B, d]`` of rows ``[B, L]`` padded with 0 on the left.

        The first call opens another session, with the vectors as an output.
        """
        inputs = {INPUT: self._checked(item_ids)}
        (vectors,) = self._run(self._vectors, self.file, [USER_VECTORS], inputs)
        return vectors[: len(item_ids)]

    def padded(self, histories: Histories) -> NDArray[np.int64]:
        """Pad the newest items of each history to the longest, ``[B, L]``."""
        longest = max((rows.size for rows in histories), default=1)
        # An empty history is one item of padding, as in the model.
        return pad_left(histories, max(1, min(longest, self.description.history)))

    @cached_property
    def _masked(self) -> "InferenceSession":
        """The session with masks; opened on first use, since most callers need no masks."""
        inputs = {INPUT: "tensor(int64)", EXCLUDE_SEEN: "tensor(bool)", ALLOWED: "tensor(bool)"}
        file = self.folder / MASKED
        return self._open_session(file, str(file), inputs)

    @cached_property
    def _vectors(self) -> "InferenceSession":
        """The session that computes user vectors and scores no item."""
        inputs, outputs = {INPUT: "tensor(int64)"}, {USER_VECTORS: "tensor(float)"}
        return self._open_session(self.file, _of_vectors(self.file), inputs, outputs)

    def _open_session(
        self,
        file: Path,
        graph: str | bytes,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str] = BEST,
    ) -> "InferenceSession":
        """Open a session, and check that the graph has these inputs and outputs."""
        runtime = import_extra("onnxruntime")
        providers = available_providers(self.description.precision)
        with artefact_errors(file), large_pages():
            session = runtime.InferenceSession(graph, self._options, providers=providers)
        actual_inputs = {value.name: value.type for value in session.get_inputs()}
        actual_outputs = {value.name: value.type for value in session.get_outputs()}
        if actual_inputs != inputs or not outputs.items() <= actual_outputs.items():
            raise ArtefactError(
                f"{file}: the graph does not have the inputs {', '.join(inputs)} and the outputs "
                f"{', '.join(outputs)}.",
                REMEDY,
            )
        return session

    def _checked(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        last = self.description.num_items
        if item_ids.size and not 0 <= item_ids.min() <= item_ids.max() <= last:
            raise ValueError(f"rows must be in 1..{last}")
        return item_ids

    def _run(
        self, session: "InferenceSession", file: Path, outputs: list[str], inputs: Feed
    ) -> list[NDArray[Any]]:
        with artefact_errors(file):
            values: list[NDArray[Any]] = session.run(outputs, inputs)
        return values


def read_description(folder: Path) -> Description:
    """Read ``engine.json``; raises :class:`ArtefactError` if it does not describe an engine."""
    file = folder / "engine.json"
    try:
        entries = json.loads(file.read_bytes())
        return Description(**{name: entries[name] for name in Description.__annotations__})
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(
            f"{file} does not describe an engine that this slmc can run.", REMEDY
        ) from None


def preferred_providers(precision: str) -> list[str]:
    """Providers in order of preference: a GPU first for 16 bits, else only the CPU."""
    return [GPU, CPU] if precision in HALVES else [CPU]


def available_providers(precision: str) -> list[str]:
    """Return those of :func:`preferred_providers` that the installed ONNX Runtime has.

    Raises:
        MissingError: The precision is bf16, and ONNX Runtime has no GPU.
    """
    installed = import_extra("onnxruntime").get_available_providers()
    providers = [name for name in preferred_providers(precision) if name in installed]
    if precision == "bf16" and GPU not in providers:
        raise MissingError(
            "precision bf16: ONNX Runtime supports it only on NVIDIA GPUs, and finds none.",
            "On a machine with a GPU, install onnxruntime-gpu instead of onnxruntime; or use fp16.",
        )
    return providers


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def import_extra(module: str) -> ModuleType:
    """Import a module of the extra ``onnx``; raises :class:`MissingError` if it fails."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingError(
            f"{module} cannot be imported ({error}).",
            "Install it with `pip install 'slmc[onnx]'`.",
        ) from None


@contextmanager
def artefact_errors(file: Path) -> Iterator[None]:
    """Raise errors of ONNX Runtime as an ``ArtefactError`` that names the graph."""
    try:
        yield
    except Exception as error:
        state = import_extra("onnxruntime.capi.onnxruntime_pybind11_state")
        kinds = tuple(c for c in vars(state).values() if isclass(c) and issubclass(c, Exception))
        if not isinstance(error, kinds):
            raise
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtefactError(
            f"{file}: ONNX Runtime cannot run it: {NOISE.sub('', message)}", REMEDY
        ) from None


def session_options(
    threads: int, weights: Path | None = None, *, spinning: bool = False
) -> "SessionOptions":
    """Return the options of a session.

    Args:
        threads: Threads of one call.
        weights: Folder of the weights, for a graph that is passed as bytes.
        spinning: Let idle threads spin for :data:`SPIN_US` while an answer is computed. Between
            answers they always sleep.
    """
    runtime = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors are raised; nothing is written to stderr
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI, sums of two 8-bit products saturate at 16 bits unless this is set.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if weights is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights)
        )
    return options


def _graph(file: Path) -> Any:
    """The graph in a file, without its weights."""
    onnx = import_extra("onnx")
    try:
        return onnx.load(file, load_external_data=False)
    except (OSError, import_extra("google.protobuf.message").DecodeError):
        raise ArtefactError(f"{file} is not an ONNX graph.", REMEDY) from None


def _of_vectors(file: Path) -> bytes:
    """The part of the graph that computes user vectors ``[B, d]``, as the only output."""
    model = _graph(file)
    if not any(USER_VECTORS in node.output for node in model.graph.node):
        raise ArtefactError(f"{file}: the graph has no value {USER_VECTORS!r}.", REMEDY)
    only_user_vectors(model, "width")
    serialized: bytes = model.SerializeToString()
    return serialized


def _with_scores(file: Path, rows: int) -> bytes:
    """The graph with one more output: the scores ``[B, rows]`` from which the top-k is taken."""
    model, onnx = _graph(file), import_extra("onnx")
    if not ensure_scores(model, rows):
        raise ArtefactError(f"{file}: the graph has no value {SCORES!r}.", REMEDY)
    if any(output.name == SCORES for output in model.graph.output):
        return file.read_bytes()
    value = onnx.helper.make_tensor_value_info(SCORES, onnx.TensorProto.FLOAT, ["batch", "rows"])
    model.graph.output.append(value)
    serialized: bytes = model.SerializeToString()
    return serialized
