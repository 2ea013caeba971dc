"""Measure the ranking of an engine, on its ONNX graph."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.evaluation.config import EvaluateEngineConfig
from slmc.evaluation.evaluate import write_report
from slmc.evaluation.scorers import Histories
from slmc.export.runtime.engine import Engine
from slmc.export.vocabulary import check_items_first


class EngineScorer:
    """A :class:`slmc.evaluation.scorers.Scorer` that runs the graph of an engine.

    It returns the scores from which the engine takes its top-k, so ranks and cross-entropies are
    those of the engine, not of its source model.
    """

    def __init__(self, engine: Artefact | Path, num_items: int | None = None) -> None:
        """Open a session; raises the same errors as :class:`Engine`.

        Args:
            engine: The engine.
            num_items: Number of items to rank, the first ones; None ranks all items.
        """
        self.engine = Engine.open(engine, scores=True)
        self.num_items = num_items or self.engine.description.num_items

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """Yield the scores of the whole catalogue in one block."""
        yield 1, torch.from_numpy(self.engine.scores(histories)[:, : self.num_items])


def evaluate_engine(
    config: EvaluateEngineConfig, inputs: dict[str, Artefact], out: Path
) -> Artefact:
    """Measure the ranking of an engine on a dataset's split: a report.

    Items that are newer than the dataset are left out of the ranking.

    Raises:
        UsageError: Engine and dataset do not have the same items in the same rows.
        UndecidedError: The split has no user.
        ArtefactError: ONNX Runtime cannot run the engine.
    """
    check_items_first(inputs["engine"], inputs["data"])
    data = Dataset.open(inputs["data"])
    scorer = EngineScorer(inputs["engine"], data.num_items)
    with draft(out) as work:
        return work.seal(
            kind="report",
            stage="evaluate_engine",
            config=config,
            inputs=inputs,
            metrics=write_report(work, scorer, data, config),
        )
