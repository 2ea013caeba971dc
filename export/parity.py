"""Parity: an engine gives the answers of its source model.

The check covers the translation to ONNX, not the loss by a lower precision: the model computes in
the engine's precision (:mod:`slmc.export.reference.precision`), so only rounding differs. If
activations are quantized, a difference in the last bit can move a code to its neighbour, so larger
differences are allowed.

Real histories are compared at several shapes: all requested histories one at a time (with one item,
and the longest) and in batches of mixed lengths; fewer at the other shapes. Histories without items
are compared too, alone and in a batch with others.
Letters: B histories, k returned items, V items.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slmc.data.batches import pad_left
from slmc.data.dataset import Dataset
from slmc.errors import ArtefactError, UndecidedError, VerdictError
from slmc.export.config import ExportConfig, ParityConfig
from slmc.export.runtime.engine import GRAPH, MASKED, Engine, Histories
from slmc.model.loading import Recommender

TIE = 1e-5
"""Scores whose difference is below this share of their spread are tied: float32 is not finer."""
TINY = 1e-30
"""Smallest spread; avoids a division by 0 if all scores are equal."""
FEW = 64
"""Histories (at least one batch) to compare at the shapes that do not get all histories."""
CHUNK = 64
"""Histories per batch of the PyTorch model."""
EMPTY = ("empty", "half empty")
"""Kinds of :attr:`Shape.lengths` with histories without items."""

ROUNDED = ParityConfig(max_error=0.1, min_overlap=0.98)
"""Limits if activations are rounded to 8 or 16 bits, unless the config allows more."""
REMEDY = "Nothing was written. Try another --opset or --layout, and report the model's shape."

log = logging.getLogger("slmc.export")


class Answers(Protocol):
    """Anything that answers as an engine does."""

    file: Path

    def answer(self, item_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows and scores ``[B, k]`` for rows ``[B, L]``, padded with 0 on the left."""


@dataclass
class Shape:
    """One shape, the number of compared histories, and the differences of the engine."""

    batch: int
    lengths: str
    """one: only the last item of each history; mixed: whole histories; longest: the longest whole
    histories; empty: no items; half empty: every second history without items."""
    columns: int
    """Length to which the histories are padded."""
    histories: int = 0
    max_error: float = 0.0
    """Largest difference of a score, in standard deviations of the model's scores."""
    overlap: float = 1.0
    """Mean share of the engine's items that are among the model's best; ties count as equal."""

    def __str__(self) -> str:
        """The shape in words, for messages."""
        noun = "histories" if self.lengths in EMPTY else "length"
        return f"batch {self.batch}, {self.lengths} {noun} ({self.columns})"

    def quota(self, available: int) -> int:
        """How many of the available histories to compare at this shape."""
        gets_all = (self.lengths == "mixed") == (self.batch > 1)
        return available if gets_all else max(FEW, self.batch)

    def add(self, error: float, overlap: NDArray[np.float64]) -> None:
        """Add the results of further histories; NaN is kept."""
        before = self.histories
        self.histories += len(overlap)
        self.max_error = float(np.maximum(self.max_error, error))
        self.overlap = (self.overlap * before + float(overlap.sum())) / self.histories


def real_histories(data: Dataset) -> Histories:
    """Return the histories of the test users, or all training histories if there is no test user.

    Raises:
        UndecidedError: The dataset has neither.
    """
    histories = data.targets("test").histories
    histories = histories or [rows[-data.history :] for rows in data.train_sequences()]
    if not histories:
        raise UndecidedError(
            "the dataset has no history on which to compare engine and model.",
            "Name a dataset with users in it with --data.",
        )
    return histories


def check(
    folder: Path,
    model: Recommender,
    histories: Histories,
    config: ExportConfig,
    *,
    rounded: bool = False,
) -> dict[str, Any]:
    """Compare engine and model at every shape.

    Args:
        folder: Folder of the engine.
        model: The source model in the engine's precision; evaluation mode, on the CPU.
        histories: Real histories; the seed decides which are used.
        config: ``config.parity`` holds the number, the batches and the limits.
        rounded: Whether the engine rounds activations to 8 or 16 bits.

    Returns:
        The content of ``parity.json``.

    Raises:
        VerdictError: The engine differs from the model, or does not run.
    """
    try:
        return check_answers(Engine(folder), model, histories, config, rounded=rounded)
    except ArtefactError as error:
        raise _withheld(folder, error) from None


def check_masks(folder: Path, histories: Histories) -> None:
    """Check that the graph with masks gives the engine's answers and applies ``exclude_seen``.

    A history without items is among those that are compared.

    Raises:
        VerdictError: It does not.
    """
    try:
        engine, sample = Engine(folder), [*histories[:FEW], histories[0][:0]]
        all_allowed = np.ones((1, engine.description.num_items + 1), dtype=bool)
        plain, masked = engine.top(sample), engine.top(sample, allowed=all_allowed)
        same = np.array_equal(plain[0], masked[0]) and np.array_equal(plain[1], masked[1])
        items, scores = engine.top(sample, exclude_seen=True)
    except ArtefactError as error:
        raise _withheld(folder, error) from None
    newest = [rows[-engine.description.history :] for rows in sample]
    returned = [rows[row_scores > -np.inf] for rows, row_scores in zip(items, scores, strict=True)]
    if not same or any(np.isin(*both).any() for both in zip(returned, newest, strict=True)):
        raise VerdictError(
            f"parity: the engine was withheld: {MASKED} gives other answers than {GRAPH}.",
            REMEDY,
        )


def _withheld(folder: Path, error: ArtefactError) -> VerdictError:
    why = error.what.replace(f"{folder}/", "")  # the draft's folder is deleted
    return VerdictError(
        f"parity: the engine was withheld: {why}",
        "Export with another --opset or --layout.",
    )


def check_answers(
    engine: Answers,
    model: Recommender,
    histories: Histories,
    config: ExportConfig,
    *,
    rounded: bool = False,
) -> dict[str, Any]:
    """As :func:`check`, for an open engine of any kind."""
    limits = _limits(config.parity, rounded)
    shapes = compare(engine, model, histories, limits, config.seed)
    for shape in compare_empty(engine, model, histories):
        _check_limits(shape, limits)
    report = {
        "max_error": _digits(max(shape.max_error for shape in shapes)),
        "overlap": _digits(min(shape.overlap for shape in shapes)),
        "allowed": {"max_error": limits.max_error, "min_overlap": limits.min_overlap},
        "shapes": [
            vars(s) | {"max_error": _digits(s.max_error), "overlap": _digits(s.overlap)}
            for s in shapes
        ],
    }
    for shape in shapes:
        _check_limits(shape, limits)
    return report


def _limits(config: ParityConfig, rounded: bool) -> ParityConfig:
    if not rounded:
        return config
    wider = {
        "max_error": max(config.max_error, ROUNDED.max_error),
        "min_overlap": min(config.min_overlap, ROUNDED.min_overlap),
    }
    return config.model_copy(update=wider)


def compare(
    engine: Answers, model: Recommender, histories: Histories, config: ParityConfig, seed: int
) -> list[Shape]:
    """Measure how far engine and model differ at each shape."""
    all_shapes = []
    for lengths, chosen in _inputs(histories, config.histories, seed).items():
        columns = {"one": 1, "longest": model.config.history}.get(
            lengths, max(rows.size for rows in chosen)
        )
        shapes = [Shape(batch, lengths, columns) for batch in sorted({1, *config.batch})]
        size = max(CHUNK, *config.batch)
        for start in range(0, len(chosen), size):
            part = pad_left(chosen[start : start + size], columns)
            with torch.inference_mode():
                scores = model(torch.from_numpy(part))[:, 1:].numpy()
            for shape in shapes:
                left = shape.quota(len(chosen)) - shape.histories
                if left > 0:
                    _compare(engine, part[:left], scores[:left], shape)
            done = {"task": "parity", "done": start + len(part), "total": len(chosen)}
            log.debug("progress", extra={"progress": done | {"unit": "histories"}})
        all_shapes += shapes
    return all_shapes


def compare_empty(engine: Answers, model: Recommender, histories: Histories) -> list[Shape]:
    """Measure how far engine and model differ on histories without items, which are padding only.

    They are not part of ``parity.json``: a model was never trained on them, so their differences
    say nothing about the ranking of users with a history.
    """
    none = histories[0][:0]
    half = [none if place % 2 else rows for place, rows in enumerate(histories[:FEW])]
    shapes = []
    for lengths, batch in zip(EMPTY, ([none, none], [*half, none]), strict=True):
        for columns in sorted({1, model.config.history}):
            part = pad_left(batch, columns)
            with torch.inference_mode():
                scores = model(torch.from_numpy(part))[:, 1:].numpy()
            for size in (1, len(batch)):
                shapes.append(Shape(size, lengths, columns))
                _compare(engine, part, scores, shapes[-1])
    return shapes


def overlap(
    items: NDArray[np.int64], scores: NDArray[np.float32], spread: float
) -> NDArray[np.float64]:
    """Return the share of the engine's items that are among the model's best k, ``[B]``.

    An item counts if the model scores it at least as high as its k-th best item, to within
    :data:`TIE`: the order of tied items does not matter. A repeated item counts once.

    Args:
        items: Rows from the engine, ``[B, k]``.
        scores: Scores of the model for the rows 1..V, ``[B, V]``.
        spread: Standard deviation of the scores.
    """
    k = items.shape[1]
    kth_best = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
    item_scores = np.take_along_axis(scores, items - 1, axis=1)
    ordered = np.sort(items, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).sum(axis=1)
    matches = (item_scores >= kth_best[:, None] - TIE * spread).sum(axis=1) - repeated
    share: NDArray[np.float64] = matches / k
    return share


def _compare(
    engine: Answers, part: NDArray[np.int64], scores: NDArray[np.float32], shape: Shape
) -> None:
    """Run the engine in batches of the shape, and add its differences from the model's scores."""
    spread = float(scores.std(axis=1).mean())
    for start in range(0, len(part), shape.batch):
        items, item_scores = engine.answer(part[start : start + shape.batch])
        expected = scores[start : start + shape.batch]
        if not ((items >= 1) & (items <= scores.shape[1])).all():
            raise ArtefactError(
                f"{engine.file}: it returns rows outside the catalogue.",
                "Run `slmc export` again.",
            )
        differences = np.abs(item_scores - np.take_along_axis(expected, items - 1, axis=1))
        error = float(differences.max()) / max(spread, TINY)
        shape.add(error, overlap(items, expected, spread))


def _inputs(histories: Histories, number: int, seed: int) -> dict[str, Histories]:
    """Choose the histories to compare, by the kind of lengths of :class:`Shape`."""
    order = np.random.default_rng(seed).permutation(len(histories))
    drawn = [histories[index] for index in order]
    longest = sorted(drawn, key=lambda rows: -rows.size)
    return {
        "one": [rows[-1:] for rows in drawn[:number]],
        "mixed": drawn[:number],
        "longest": longest[:number],
    }


def _check_limits(shape: Shape, limits: ParityConfig) -> None:
    # These comparisons are false for NaN, so that it fails.
    if not shape.max_error <= limits.max_error:
        raise VerdictError(
            f"parity: the engine was withheld: at {shape} a score differs by "
            f"{shape.max_error:.3g} of the scores' spread; the limit is {limits.max_error:g}.",
            REMEDY,
        )
    if not shape.overlap >= limits.min_overlap:
        raise VerdictError(
            f"parity: the engine was withheld: at {shape} it shares {shape.overlap:.2%} of the top "
            f"items with the model; the limit is {limits.min_overlap:.2%}.",
            REMEDY,
        )


def _digits(number: float) -> float:
    """Round to three digits: further ones depend on the machine."""
    return float(f"{number:.3g}") if number < 0.1 else round(number, 5)
