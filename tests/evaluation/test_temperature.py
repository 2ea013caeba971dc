from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from slmc.data.dataset import Dataset
from slmc.errors import BrokenRunError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import best_temperature, rank
from slmc.evaluation.scorers import Histories
from slmc.evaluation.temperature import INVERSE, best, cross_entropies

ITEMS = 40


def drawn(users: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores ``[n, V]`` that are the true log-odds of the targets, and these targets (rows)."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(users, ITEMS, generator=generator)
    return scores, 1 + torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]


def blocks(scores: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, scores.shape[1], width):
        yield start + 1, scores[:, start : start + width]


@pytest.mark.parametrize("width", [ITEMS, 7, 1])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_cross_entropies_are_those_of_the_softmax(width: int, scale: float) -> None:
    scores, targets = drawn(50)
    found = cross_entropies(blocks(scale * scores, width), targets)
    for k, inverse in enumerate(INVERSE):
        logs = (scale * scores.double() * inverse).log_softmax(1)
        expected = -logs[torch.arange(50), targets - 1]
        assert found[:, k].numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0, 1.5, 3.0, 4.5, 6.0])
def test_the_temperature_that_scores_were_multiplied_by_is_found(scale: float) -> None:
    scores, targets = drawn(4000)
    mean = cross_entropies(blocks(scale * scores, ITEMS), targets).mean(0).numpy()
    found = best(mean)
    assert found == pytest.approx(scale, rel=0.04)

    def ce(temperature: float) -> float:
        return torch.nn.functional.cross_entropy(
            (scale * scores / temperature).double(), targets - 1
        ).item()

    lowest = min(ce(float(t)) for t in np.geomspace(0.2, 8, 400))
    assert ce(found) < lowest + 2e-4


def test_beyond_what_is_tried_the_end_is_taken() -> None:
    rising = np.arange(12, dtype=float)
    assert best(rising) == pytest.approx(8.0)
    assert best(-rising) == pytest.approx(0.17678, abs=1e-5)


class LogOdds:
    """The true log-odds of a user, found by its only item, times a number."""

    def __init__(self, scores: Tensor, scale: float, width: int = ITEMS) -> None:
        self.num_items, self.scores, self.width = ITEMS, scale * scores, width

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        return blocks(self.scores[[int(rows[0]) - 1 for rows in histories]], self.width)


def chains(users: int) -> tuple[Dataset, Tensor]:
    """Users of three items; the second is drawn by the log-odds of the first."""
    generator = torch.Generator().manual_seed(1)
    scores = 2 * torch.randn(ITEMS, ITEMS, generator=generator)
    first = torch.randint(ITEMS, (users,), generator=generator)
    second = 1 + torch.multinomial(scores[first].softmax(1), 1, generator=generator)[:, 0]
    rows = torch.stack([first + 1, second, second], dim=1).tolist()
    cuts = {"valid_from": [1] * users, "test_from": [2] * users}
    sequences = pl.DataFrame({"user": [str(u) for u in range(users)], "items": rows, **cuts})
    items = pl.DataFrame({"row": range(1, ITEMS + 1), "count": [1] * ITEMS})
    return Dataset(items, sequences, 10), scores


@pytest.mark.parametrize("width", [ITEMS, 11])
def test_scores_of_any_scale_have_the_same_calibrated_cross_entropy(width: int) -> None:
    data, scores = chains(2000)
    asked = EvaluateConfig(split="valid", exclude_seen=False)
    means = {}
    for scale in (1.0, 3.0):
        scorer = LogOdds(scores, scale, width)
        temperature = best_temperature(scorer, data, asked)
        assert temperature == pytest.approx(scale, rel=0.1)
        users = data.targets("valid")
        found = rank(scorer, users, data.counts, asked, temperature=temperature)
        means[scale] = found["ce_calibrated"].mean(), found["ce"].mean()
    assert means[3.0][0] == pytest.approx(means[1.0][0], abs=0.002)  # type: ignore[arg-type]
    assert means[3.0][1] > means[1.0][1] + 0.5  # type: ignore[operator]


def test_without_a_temperature_nothing_is_calibrated() -> None:
    data, scores = chains(5)
    asked = EvaluateConfig(exclude_seen=False)
    found = rank(LogOdds(scores, 1.0), data.targets("test"), data.counts, asked)
    assert found["ce_calibrated"].null_count() == 5


def test_no_validation_user_is_said(caplog: pytest.LogCaptureFixture) -> None:
    data, scores = chains(5)
    nobody = Dataset(data.items, data.sequences.with_columns(valid_from=pl.col("test_from")), 10)
    assert best_temperature(LogOdds(scores, 1.0), nobody, EvaluateConfig()) is None
    assert caplog.messages == [
        "calibrate: no validation users, so no temperature and no ce_calibrated"
    ]


def test_a_score_that_is_no_number_is_refused() -> None:
    data, scores = chains(5)
    scores[:, 3] = float("nan")
    with pytest.raises(BrokenRunError, match="calibrate: a score of user '0' is not a finite"):
        best_temperature(LogOdds(scores, 1.0), data, EvaluateConfig(batch=1))
