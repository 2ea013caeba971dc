"""A model of Triton's Python backend: original ids in, original ids out, ONNX Runtime inside.

The exporter copies this file into a Triton repository as ``model.py``, beside ``items.jsonl``,
``masked.onnx`` and the ``model.onnx`` whose weights that reads. So it stands alone: numpy,
onnxruntime and what Triton brings are all it imports.

Letters: B histories, L their longest, k items given back.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU = "CPUExecutionProvider"
NOTHING = np.finfo(np.float32).min
"""Score where fewer than k items may be given; JSON has no infinity."""


class Ranker:
    """The best items for histories of original ids."""

    def __init__(self, folder: Path, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        """Start a session on ``masked.onnx`` in ``folder``, named by its ``items.jsonl``.

        It computes in the first of ``providers`` that this ONNX Runtime has.
        """
        import onnxruntime

        with (folder / "items.jsonl").open(encoding="utf-8") as lines:
            items = [json.loads(line)["item"] for line in lines]
        self.ids = np.array(["", *items], dtype=object)
        self.row_of = {item: row for row, item in enumerate(items, start=1)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from the other instances.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without VNNI, sums of two products of 8 bits are cut off at 16 bits unless this is set.
        options.add_session_config_entry("session.x64quantprecision", "1")
        there = onnxruntime.get_available_providers()
        self.session = onnxruntime.InferenceSession(
            str(folder / "masked.onnx"), options, providers=[p for p in providers if p in there]
        )

    def best(
        self, histories: Sequence[Sequence[str]], exclude_seen: Sequence[bool]
    ) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
        """The best items of each history.

        Args:
            histories: Original ids, oldest first; those that the vocabulary lacks are skipped.
            exclude_seen: For each history, whether to leave out its items.

        Returns:
            Ids ``[B, k]``, best first, and scores ``[B, k]``; where fewer may be given, ids are
            empty and scores :data:`NOTHING`.
        """
        rows = [[self.row_of[item] for item in one if item in self.row_of] for one in histories]
        item_ids = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
        for line, known in zip(item_ids, rows, strict=True):
            line[len(line) - len(known) :] = known
        allowed = np.ones((1, 1), dtype=bool)
        if any(exclude_seen):
            # The graph's own exclude_seen knows what the model sees; these may be older.
            allowed = np.ones((len(rows), len(self.ids)), dtype=bool)
            for line, known, exclude in zip(allowed, rows, exclude_seen, strict=True):
                if exclude:
                    line[known] = False
        given = {"item_ids": item_ids, "exclude_seen": np.zeros(1, dtype=bool), "allowed": allowed}
        items, scores = self.session.run(["top_items", "top_scores"], given)
        none = np.isneginf(scores)
        items[none], scores[none] = 0, NOTHING
        return self.ids[items], scores


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version that Triton names; its settings are ``parameters`` of config.pbtxt."""
        self.utils = import_module("triton_python_backend_utils")  # Triton's, on its own path
        config = json.loads(args["model_config"])
        settings = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.ranker = Ranker(
            Path(args["model_repository"]) / args["model_version"],
            int(settings["threads"]),
            settings["providers"].split(","),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests that Triton has joined in one call."""
        responses: list[Any] = [None] * len(requests)
        histories: list[list[str]] = []
        exclude_seen: list[bool] = []
        parts = {}
        for place, request in enumerate(requests):
            try:
                asked, exclude = self._read(request)
            except ValueError as error:
                said = self.utils.TritonError(str(error))
                responses[place] = self.utils.InferenceResponse(error=said)
                continue
            parts[place] = slice(len(histories), len(histories) + len(asked))
            histories += asked
            exclude_seen += exclude
        items, scores = self.ranker.best(histories, exclude_seen)
        for place, part in parts.items():
            responses[place] = self._response(items[part], scores[part])
        return responses

    def _read(self, request: Any) -> tuple[list[list[str]], list[bool]]:
        """Histories of a request, without the empty ids that fill its rows, and what each asks.

        Raises:
            ValueError: An id is not UTF-8, or exclude_seen is not one value a history.
        """
        given = self.utils.get_input_tensor_by_name(request, "history").as_numpy()
        try:
            histories = [[item.decode() for item in row if item] for row in given]
        except UnicodeDecodeError as error:
            raise ValueError(f"history: an id is not UTF-8: {error}") from None
        option = self.utils.get_input_tensor_by_name(request, "exclude_seen")
        if option is None:
            return histories, [False] * len(histories)
        exclude_seen = option.as_numpy().reshape(-1).tolist()
        if len(exclude_seen) != len(histories):
            raise ValueError(
                f"exclude_seen: {len(exclude_seen)} values for {len(histories)} histories"
            )
        return histories, exclude_seen

    def _response(self, items: NDArray[np.object_], scores: NDArray[np.float32]) -> Any:
        # Of no rows, an array of nothing would have one axis.
        coded = np.array([[item.encode() for item in row] for row in items], dtype=object)
        coded = coded.reshape(items.shape)
        tensors = [self.utils.Tensor("items", coded), self.utils.Tensor("scores", scores)]
        return self.utils.InferenceResponse(output_tensors=tensors)
