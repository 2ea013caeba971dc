"""A model of Triton's Python backend: original ids in, original ids out, ONNX Runtime inside.

The exporter copies this file into a Triton repository as ``model.py``, together with
``items.jsonl``, ``masked.onnx`` and ``model.onnx``, which holds the weights of ``masked.onnx``. So
it imports only numpy, onnxruntime and Triton's own modules.

Letters: B histories, L their padded length, k returned items.
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
"""Score after the last item if fewer than k are allowed; JSON has no infinity."""


class Ranker:
    """Finds the best items for histories of original ids."""

    def __init__(self, folder: Path, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        """Open a session on ``masked.onnx`` in ``folder``, with the ids of ``items.jsonl``.

        It uses the first of ``providers`` that this ONNX Runtime has.
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
        # Spinning threads would take cores from the other instances.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without VNNI, sums of two 8-bit products saturate at 16 bits unless this is set.
        options.add_session_config_entry("session.x64quantprecision", "1")
        installed = onnxruntime.get_available_providers()
        self.session = onnxruntime.InferenceSession(
            str(folder / "masked.onnx"), options, providers=[p for p in providers if p in installed]
        )

    def best(
        self, histories: Sequence[Sequence[str]], exclude_seen: Sequence[bool]
    ) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
        """Return the best items of each history.

        Args:
            histories: Original ids, oldest first; ids outside the vocabulary are skipped.
            exclude_seen: For each history, whether to exclude its items.

        Returns:
            Ids ``[B, k]``, best first, and scores ``[B, k]``. If fewer than k items are allowed,
            the other ids are empty and their scores :data:`NOTHING`.
        """
        rows = [[self.row_of[item] for item in one if item in self.row_of] for one in histories]
        item_ids = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
        for line, known in zip(item_ids, rows, strict=True):
            line[len(line) - len(known) :] = known
        allowed = np.ones((1, 1), dtype=bool)
        if any(exclude_seen):
            # The input exclude_seen covers only the newest items, which the model uses.
            allowed = np.ones((len(rows), len(self.ids)), dtype=bool)
            for line, known, exclude in zip(allowed, rows, exclude_seen, strict=True):
                if exclude:
                    line[known] = False
        inputs = {"item_ids": item_ids, "exclude_seen": np.zeros(1, dtype=bool), "allowed": allowed}
        items, scores = self.session.run(["top_items", "top_scores"], inputs)
        none = np.isneginf(scores)
        items[none], scores[none] = 0, NOTHING
        return self.ids[items], scores


class TritonPythonModel:
    """The interface that Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version that Triton names; settings are the ``parameters`` of config.pbtxt."""
        self.utils = import_module("triton_python_backend_utils")  # provided by Triton
        config = json.loads(args["model_config"])
        settings = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.ranker = Ranker(
            Path(args["model_repository"]) / args["model_version"],
            int(settings["threads"]),
            settings["providers"].split(","),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a dynamic batch in one call."""
        responses: list[Any] = [None] * len(requests)
        histories: list[list[str]] = []
        exclude_seen: list[bool] = []
        slices = {}
        for index, request in enumerate(requests):
            try:
                request_histories, request_exclude_seen = self._read(request)
            except ValueError as error:
                triton_error = self.utils.TritonError(str(error))
                responses[index] = self.utils.InferenceResponse(error=triton_error)
                continue
            slices[index] = slice(len(histories), len(histories) + len(request_histories))
            histories += request_histories
            exclude_seen += request_exclude_seen
        items, scores = self.ranker.best(histories, exclude_seen)
        for index, rows in slices.items():
            responses[index] = self._response(items[rows], scores[rows])
        return responses

    def _read(self, request: Any) -> tuple[list[list[str]], list[bool]]:
        """Return the histories of a request, without padding ids, and ``exclude_seen`` for each.

        Raises:
            ValueError: An id is not UTF-8, or exclude_seen does not have one value per history.
        """
        ids = self.utils.get_input_tensor_by_name(request, "history").as_numpy()
        try:
            histories = [[item.decode() for item in row if item] for row in ids]
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
        encoded = np.array([[item.encode() for item in row] for row in items], dtype=object)
        encoded = encoded.reshape(items.shape)  # without rows, NumPy makes an array of one axis
        tensors = [self.utils.Tensor("items", encoded), self.utils.Tensor("scores", scores)]
        return self.utils.InferenceResponse(output_tensors=tensors)
