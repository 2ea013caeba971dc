"""Measure the ranking of an engine, on the engine's own graph."""

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
from slmc.export.vocabulary import check_same


class EngineScorer:
    """A :class:`slmc.evaluation.scorers.Scorer` that asks the graph of an engine.

    The value that the engine takes its top-k of is given out as it is, so ranks and
    cross-entropies are those of the engine, not of the model that it was made from.
    """

    def __init__(self, engine: Artefact | Path) -> None:
        """Start a session; raises as :class:`Engine` does."""
        self.engine = Engine.open(engine, scores=True)
        self.num_items = self.engine.described.num_items

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """See :class:`slmc.evaluation.scorers.Scorer`: the catalogue in one block."""
        yield 1, torch.from_numpy(self.engine.scores(histories))


def evaluate_engine(
    config: EvaluateEngineConfig, inputs: dict[str, Artefact], out: Path
) -> Artefact:
    """Measure the ranking of an engine on a dataset's split: a report.

    Raises:
        UsageError: Engine and dataset do not number the same items.
        UndecidedError: The split has no user.
        ArtefactError: ONNX Runtime cannot run the engine.
    """
    check_same(inputs["engine"], inputs["data"])
    data = Dataset.open(inputs["data"])
    scorer = EngineScorer(inputs["engine"])
    with draft(out) as work:
        return work.seal(
            kind="report",
            stage="evaluate_engine",
            config=config,
            inputs=inputs,
            metrics=write_report(work, scorer, data, config),
        )
