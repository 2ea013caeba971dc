"""Parity: an engine gives the answers of the model that it was made from.

A translation is proven, not a precision: the model computes in the engine's precision
(:mod:`slmc.export.reference.precision`), so what differs is rounding. Where tokens are rounded to 8
bits, a last bit that differs can turn a code into its neighbour: there more is allowed. Real
histories are compared at several shapes: all that are asked for one at a time, of one item and of
the greatest length, and in batches of mixed lengths; a few of them at the shapes between. Letters:
B histories, k items given back, V items.
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
"""Scores that differ by less, relative to their spread, are tied: float32 tells them no better."""
TINY = 1e-30
"""Spread that stands for none: scores that are all equal."""
FEW = 64
"""Histories, or one batch, that are compared at a shape between those that are compared whole."""
CHUNK = 64
"""Histories whose scores the model gives at once."""

ROUNDED = ParityConfig(max_error=0.1, min_overlap=0.98)
"""What is allowed, unless the config allows more, where tokens are rounded to 8 bits."""

log = logging.getLogger("slmc.export")


class Answers(Protocol):
    """What can be asked as an engine is."""

    file: Path

    def answer(self, item_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores ``[B, k]`` for rows ``[B, L]`` padded with 0 on the left."""


@dataclass
class Shape:
    """What was compared at one shape, and how far the engine was off."""

    batch: int
    lengths: str
    """one: of each history its last item; mixed: whole histories; longest: those with the most
    items, whole."""
    columns: int
    """Length that the histories are padded to."""
    histories: int = 0
    max_error: float = 0.0
    """Largest difference of a score, in standard deviations of the model's scores."""
    overlap: float = 1.0
    """Mean share of the engine's items that are among the model's best, ties counted as equal."""

    def asked(self, number: int) -> int:
        """How many of ``number`` histories are compared here."""
        whole = (self.lengths == "mixed") == (self.batch > 1)
        return number if whole else max(FEW, self.batch)

    def add(self, error: float, overlap: NDArray[np.float64]) -> None:
        """Count further histories; not a number stays."""
        before = self.histories
        self.histories += len(overlap)
        self.max_error = float(np.maximum(self.max_error, error))
        self.overlap = (self.overlap * before + float(overlap.sum())) / self.histories


def real_histories(data: Dataset) -> Histories:
    """Histories of the test users, or the training part of all users if none is tested.

    Raises:
        UndecidedError: The dataset has neither.
    """
    histories = data.targets("test").histories
    histories = histories or [rows[-data.history :] for rows in data.train_sequences()]
    if not histories:
        raise UndecidedError(
            "the dataset holds no history to compare engine and model on.",
            "Name a dataset with users in it with --data.",
        )
    return histories


def check(
    folder: Path,
    model: Recommender,
    histories: Histories,
    config: ExportConfig,
    *,
    rounds: bool = False,
) -> dict[str, Any]:
    """Compare engine and model at every shape.

    Args:
        folder: Of the engine that is checked.
        model: What it was made from; float32, in evaluation mode, on the CPU.
        histories: Real ones, drawn from by the seed.
        config: Its ``parity`` says how many, in which batches, and how close.
        rounds: Whether the engine rounds tokens to 8 bits.

    Returns:
        The body of ``parity.json``.

    Raises:
        VerdictError: The engine is not the model, or does not run.
    """
    try:
        return judged(Engine(folder), model, histories, config, rounds=rounds)
    except ArtefactError as error:
        raise _withheld(folder, error) from None


def check_masks(folder: Path, histories: Histories) -> None:
    """See that the graph with masks gives the engine's answers, and leaves out what it is told to.

    Raises:
        VerdictError: It does not.
    """
    try:
        engine, some = Engine(folder), histories[:FEW]
        every = np.ones((1, engine.described.num_items + 1), dtype=bool)
        plain, masked = engine.top(some), engine.top(some, allowed=every)
        same = np.array_equal(plain[0], masked[0]) and np.array_equal(plain[1], masked[1])
        items, scores = engine.top(some, exclude_seen=True)
    except ArtefactError as error:
        raise _withheld(folder, error) from None
    newest = [rows[-engine.described.history :] for rows in some]
    given = [row[found > -np.inf] for row, found in zip(items, scores, strict=True)]
    if not same or any(np.isin(*both).any() for both in zip(given, newest, strict=True)):
        raise VerdictError(
            f"parity: the engine was withheld: {MASKED} does not answer as {GRAPH}.",
            "Nothing was written. Try another --opset or --layout, and report the model's shape.",
        )


def _withheld(folder: Path, error: ArtefactError) -> VerdictError:
    why = error.what.replace(f"{folder}/", "")  # a draft, gone when this is read
    return VerdictError(
        f"parity: the engine was withheld: {why}",
        "Export with another --opset or --layout.",
    )


def judged(
    engine: Answers,
    model: Recommender,
    histories: Histories,
    config: ExportConfig,
    *,
    rounds: bool = False,
) -> dict[str, Any]:
    """As :func:`check`, for an engine that runs already, of whatever kind."""
    allowed = _allowed(config.parity, rounds)
    shapes = compare(engine, model, histories, allowed, config.seed)
    report = {
        "max_error": _digits(max(shape.max_error for shape in shapes)),
        "overlap": _digits(min(shape.overlap for shape in shapes)),
        "allowed": {"max_error": allowed.max_error, "min_overlap": allowed.min_overlap},
        "shapes": [
            vars(s) | {"max_error": _digits(s.max_error), "overlap": _digits(s.overlap)}
            for s in shapes
        ],
    }
    for shape in shapes:
        _refuse_unless_equal(shape, allowed)
    return report


def _allowed(config: ParityConfig, rounds: bool) -> ParityConfig:
    if not rounds:
        return config
    wider = {
        "max_error": max(config.max_error, ROUNDED.max_error),
        "min_overlap": min(config.min_overlap, ROUNDED.min_overlap),
    }
    return config.model_copy(update=wider)


def compare(
    engine: Answers, model: Recommender, histories: Histories, config: ParityConfig, seed: int
) -> list[Shape]:
    """How far engine and model differ at each shape."""
    shapes = []
    for lengths, chosen in _inputs(histories, config.histories, seed).items():
        columns = {"one": 1, "longest": model.config.history}.get(
            lengths, max(rows.size for rows in chosen)
        )
        found = [Shape(batch, lengths, columns) for batch in sorted({1, *config.batch})]
        size = max(CHUNK, *config.batch)
        for start in range(0, len(chosen), size):
            part = pad_left(chosen[start : start + size], columns)
            with torch.inference_mode():
                scores = model(torch.from_numpy(part))[:, 1:].numpy()
            for shape in found:
                left = shape.asked(len(chosen)) - shape.histories
                if left > 0:
                    _compare(engine, part[:left], scores[:left], shape)
            done = {"task": "parity", "done": start + len(part), "total": len(chosen)}
            log.debug("progress", extra={"progress": done | {"unit": "histories"}})
        shapes += found
    return shapes


def overlap(
    items: NDArray[np.int64], scores: NDArray[np.float32], spread: float
) -> NDArray[np.float64]:
    """Share of the engine's items that the model could have given, ``[B]``.

    An item counts if the model's score of it reaches the k-th best, to within :data:`TIE`: which
    of tied items is given is no difference. An item that is given twice counts once.

    Args:
        items: ``[B, k]`` rows that the engine gave.
        scores: ``[B, V]`` of the model, for the rows 1..V.
        spread: Standard deviation of the scores.
    """
    k = items.shape[1]
    edge = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
    own = np.take_along_axis(scores, items - 1, axis=1)
    ordered = np.sort(items, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).sum(axis=1)
    good = (own >= edge[:, None] - TIE * spread).sum(axis=1) - repeated
    found: NDArray[np.float64] = good / k
    return found


def _compare(
    engine: Answers, part: NDArray[np.int64], scores: NDArray[np.float32], shape: Shape
) -> None:
    """Ask the engine in batches of the shape, and add what differs from the model's scores."""
    spread = float(scores.std(axis=1).mean())
    for start in range(0, len(part), shape.batch):
        items, given = engine.answer(part[start : start + shape.batch])
        expected = scores[start : start + shape.batch]
        if not ((items >= 1) & (items <= scores.shape[1])).all():
            raise ArtefactError(
                f"{engine.file}: it gives rows outside the catalogue.",
                "Make the engine again with `slmc export`.",
            )
        differences = np.abs(given - np.take_along_axis(expected, items - 1, axis=1))
        error = float(differences.max()) / max(spread, TINY)
        shape.add(error, overlap(items, expected, spread))


def _inputs(histories: Histories, number: int, seed: int) -> dict[str, Histories]:
    """Which histories are compared: their last item alone, whole, and the longest of all."""
    order = np.random.default_rng(seed).permutation(len(histories))
    drawn = [histories[index] for index in order]
    longest = sorted(drawn, key=lambda rows: -rows.size)
    return {
        "one": [rows[-1:] for rows in drawn[:number]],
        "mixed": drawn[:number],
        "longest": longest[:number],
    }


def _refuse_unless_equal(shape: Shape, config: ParityConfig) -> None:
    at = f"batch {shape.batch}, {shape.lengths} length ({shape.columns})"
    remedy = "Nothing was written. Try another --opset or --layout, and report the model's shape."
    # Written so that not a number fails.
    if not shape.max_error <= config.max_error:
        raise VerdictError(
            f"parity: the engine was withheld: at {at} a score differs by "
            f"{shape.max_error:.3g} of the scores' spread, allowed is {config.max_error:g}.",
            remedy,
        )
    if not shape.overlap >= config.min_overlap:
        raise VerdictError(
            f"parity: the engine was withheld: at {at} {shape.overlap:.2%} of the items are the "
            f"model's, asked for is {config.min_overlap:.2%}.",
            remedy,
        )


def _digits(number: float) -> float:
    """Three digits: what is beyond them is another machine's rounding."""
    return float(f"{number:.3g}") if number < 0.1 else round(number, 5)
