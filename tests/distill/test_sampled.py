"""Teachers and students with a sampled softmax."""

import json
import logging
from pathlib import Path

import pytest
import torch

from slmc.artefact import Artefact
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.distill.distill import distill
from slmc.distill.ranking import ranking_loss
from slmc.distill.teach import teach

ITEMS = 30
"""Items of the log of the tests."""
TERMS = {"cosine": 1.0, "norm": 0.1, "supervise": 1.0, "logits": 1.0, "ranking": 0.5}
FAST = {"epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32", "lr": 3e-3, "dropout": 0.0}
"""Without dropout, whose draws would shift: drawing items uses the same random state."""
ALL_DRAWN = {"softmax": "sampled", "negatives": ITEMS - 1}
"""With the targets of the batch these are all items, so nothing is left to chance."""
SAME = 1e-3
"""Sums in another order, over the steps of an epoch."""


def first_epoch(artefact: Artefact) -> dict[str, float]:
    epochs = json.loads(artefact.file("metrics.json").read_text())["epochs"]
    first: dict[str, float] = epochs[0]
    return first


def test_a_student_with_all_items_drawn_is_that_of_the_full_softmax(
    dataset: Artefact, teacher: Artefact, tmp_path: Path
) -> None:
    inputs = {"data": dataset, "teacher": teacher}
    found = []
    for name, other in (("full", {}), ("sampled", ALL_DRAWN)):
        config = DistillConfig.model_validate(
            FAST | {"layers": 2, "blocks": 2, "losses": TERMS} | other
        )
        found.append(first_epoch(distill(config, inputs, tmp_path / name)))
    assert found[1] == pytest.approx(found[0], rel=SAME)


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen table", "trained table"])
def test_a_teacher_with_all_items_drawn_is_that_of_the_full_softmax(
    dataset: Artefact, sasrec: Artefact, baselines: Artefact, tmp_path: Path, freeze: bool
) -> None:
    inputs = {"data": dataset, "sasrec": sasrec, "baselines": baselines}
    backbone = "random://llama?layers=1&hidden=32&heads=4&kv_heads=2&intermediate=64"
    found = []
    for name, other in (("full", {}), ("sampled", ALL_DRAWN)):
        config = TeachConfig.model_validate(
            FAST
            | {"backbone": backbone, "freeze_items": freeze, "must_beat": None}
            # A row rests only where no token and no candidate is its item: never, here.
            | other
        )
        found.append(first_epoch(teach(config, inputs, tmp_path / name)))
    assert found[1] == pytest.approx(found[0], rel=SAME)


def test_the_ranking_term_of_a_sample_is_that_of_the_weighted_sums() -> None:
    """Against a loop in float64: items that are not ranked count as often as their weight."""
    generator = torch.Generator().manual_seed(2)
    queries, items = (torch.randn(n, 4, generator=generator) for n in (3, 9))
    order, targets = torch.tensor([[2, 5], [1, 8], [7, 3]]), torch.tensor([4, 4, 6])
    log_weights, weights = torch.rand(8, generator=generator), torch.tensor([0.7, 0.3])
    ours = queries.clone().requires_grad_()
    found = ranking_loss(ours, items, order, targets, weights, log_weights)
    found.backward()

    plain, total = queries.double().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for n in range(3):
        scores, best = plain[n] @ items.double().T, order[n].tolist()
        rest = [i for i in range(1, 9) if i not in (*best, int(targets[n]))]
        others = sum(scores[i].exp() * log_weights[i - 1].double().exp() for i in rest)
        for k, item in enumerate(best):
            later = sum(scores[i].exp() for i in best[k:])
            total = total - weights[k].double() * (scores[item] - (later + others).log())
    (total / 3).backward()
    assert ours.grad is not None and plain.grad is not None
    assert abs(found.item() - total.item() / 3) < 1e-6
    assert (ours.grad - plain.grad).abs().max() < 1e-6


def test_few_items_drawn_distil_as_well(
    dataset: Artefact, teacher: Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DistillConfig.model_validate(
        FAST
        | {"layers": 2, "blocks": 2, "losses": TERMS, "epochs": 3}
        | {"softmax": "sampled", "negatives": 5}
    )
    with caplog.at_level(logging.INFO, logger="slmc.train"):
        student = distill(config, {"data": dataset, "teacher": teacher}, tmp_path / "student")
    assert (
        "distill: sampled softmax over the targets of a batch and 5 of 30 items "
        "(softmax: sampled)" in caplog.messages
    )
    epochs = json.loads(student.file("metrics.json").read_text())["epochs"]
    for term in ("ce", *TERMS):
        assert epochs[-1][term] < epochs[0][term]
    # Validation is over all items.
    assert epochs[-1]["valid_ce"] < epochs[0]["valid_ce"] - 0.2
