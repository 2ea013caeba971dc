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
    """Scores ``[n, V]``, and targets (rows) that are drawn with their softmax."""
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
    ce = cross_entropies(blocks(scale * scores, width), targets)
    for k, inverse in enumerate(INVERSE):
        logs = (scale * scores.double() * inverse).log_softmax(1)
        expected = -logs[torch.arange(50), targets - 1]
        assert ce[:, k].numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0, 1.5, 3.0, 4.5, 6.0])
def test_the_fit_recovers_the_scale_of_the_scores(scale: float) -> None:
    scores, targets = drawn(4000)
    mean = cross_entropies(blocks(scale * scores, ITEMS), targets).mean(0).numpy()
    fitted = best(mean)
    assert fitted == pytest.approx(scale, rel=0.04)

    def ce(temperature: float) -> float:
        return torch.nn.functional.cross_entropy(
            (scale * scores / temperature).double(), targets - 1
        ).item()

    lowest = min(ce(float(t)) for t in np.geomspace(0.2, 8, 400))
    assert ce(fitted) < lowest + 2e-4


def test_a_minimum_outside_of_the_grid_gives_its_end() -> None:
    rising = np.arange(12, dtype=float)
    assert best(rising) == pytest.approx(8.0)
    assert best(-rising) == pytest.approx(0.17678, abs=1e-5)


class LogOdds:
    """Scales the scores of a user, who is identified by the only item of the history."""

    def __init__(self, scores: Tensor, scale: float, width: int = ITEMS) -> None:
        self.num_items, self.scores, self.width = ITEMS, scale * scores, width

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        return blocks(self.scores[[int(rows[0]) - 1 for rows in histories]], self.width)


def chains(users: int) -> tuple[Dataset, Tensor]:
    """Users with three items; the second is drawn from the scores of the first."""
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
    config = EvaluateConfig(split="valid", exclude_seen=False)
    means = {}
    for scale in (1.0, 3.0):
        scorer = LogOdds(scores, scale, width)
        temperature = best_temperature(scorer, data, config)
        assert temperature == pytest.approx(scale, rel=0.1)
        users = data.targets("valid")
        table = rank(scorer, users, data.counts, config, temperature=temperature)
        means[scale] = table["ce_calibrated"].mean(), table["ce"].mean()
    assert means[3.0][0] == pytest.approx(means[1.0][0], abs=0.002)  # type: ignore[arg-type]
    assert means[3.0][1] > means[1.0][1] + 0.5  # type: ignore[operator]


def test_without_a_temperature_nothing_is_calibrated() -> None:
    data, scores = chains(5)
    config = EvaluateConfig(exclude_seen=False)
    table = rank(LogOdds(scores, 1.0), data.targets("test"), data.counts, config)
    assert table["ce_calibrated"].null_count() == 5


def test_no_validation_user_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    data, scores = chains(5)
    nobody = Dataset(data.items, data.sequences.with_columns(valid_from=pl.col("test_from")), 10)
    assert best_temperature(LogOdds(scores, 1.0), nobody, EvaluateConfig()) is None
    assert caplog.messages == [
        "calibrate: no validation users, so no temperature and no ce_calibrated"
    ]


def test_a_score_that_is_not_finite_is_refused() -> None:
    data, scores = chains(5)
    scores[:, 3] = float("nan")
    with pytest.raises(BrokenRunError, match="calibrate: a score of user '0' is not a finite"):
        best_temperature(LogOdds(scores, 1.0), data, EvaluateConfig(batch=1))
