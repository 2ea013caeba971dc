"""Several teachers, a SASRec as teacher and as student, and chains of students."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.distill.task import Distillation
from slmc.distill.teachers import compute_signals, load_teachers
from slmc.errors import UsageError
from slmc.model.device import Placement
from slmc.model.loading import load_model, load_recommender
from slmc.model.sasrec import Sasrec
from slmc.training.next_item import layout, training_rows
from slmc.training.softmax import Softmax
from slmc.training.types import Batch

FAST = {"layers": 2, "blocks": 2, "epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32"}
BACKBONE = "random://llama?layers=3&hidden=32&heads=4&kv_heads=2&intermediate=64"
CPU = Placement(torch.device("cpu"), torch.float32)
HALF = 1e-2
"""The teachers' user vectors are stored in float16."""
Inputs = dict[str, Artefact]


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> Inputs:
    return {"data": dataset, "teacher": teacher}


def settings(**other: object) -> DistillConfig:
    return DistillConfig.model_validate(FAST | {"losses": {"logits": 1.0}} | other)


def metrics_of(artefact: Artefact) -> dict[str, object]:
    metrics: dict[str, object] = json.loads(artefact.file("metrics.json").read_text())
    return metrics


def test_the_term_is_that_of_the_mean_of_the_distributions(
    inputs: Inputs, sasrec: Artefact
) -> None:
    """The logit term of a batch against float64 softmax of both teachers' own scores."""
    config, data = settings(), Dataset.open(inputs["data"])
    teachers = load_teachers(config, inputs | {"teacher2": sasrec}, data)
    epochs = training_rows(config, data, packings=1)
    student = load_recommender(inputs["teacher"]).eval()
    signals = compute_signals(config, teachers, epochs, CPU)
    softmax = Softmax(data.num_items, None)
    task = Distillation(config, student, signals, data.counts, softmax)
    rows = epochs.pack(0)
    index = np.arange(4)
    tensors = [torch.from_numpy(a[index]) for a in (rows.item_ids, rows.segments, rows.positions)]
    batch = Batch(
        tensors[0], torch.from_numpy(rows.targets[index]), tensors[2], tensors[1], index, 0
    )
    with torch.no_grad():
        term = task(batch)["logits"].item()

    mask = batch.targets.flatten() > 0
    with torch.no_grad():
        logs = []
        for model in (student, *(one.model for one in teachers)):
            queries = model.head(model.hidden_states(batch.tokens.flatten(), layout(batch)))[mask]
            scores = queries.double() @ model.item_vectors()[1:].double().T
            logs.append(scores.log_softmax(dim=1))
    mean = (logs[1].exp() + logs[2].exp()) / 2
    expected = (mean * (mean.log() - logs[0])).sum(dim=1).mean().item()
    assert expected > HALF
    assert term == pytest.approx(expected, abs=HALF * expected)


def test_a_second_teacher_changes_the_student(
    inputs: Inputs, sasrec: Artefact, tmp_path: Path
) -> None:
    one = distill(settings(), inputs, tmp_path / "one")
    two = distill(settings(), inputs | {"teacher2": sasrec}, tmp_path / "two")
    assert set(two.manifest.parents) == {"data", "teacher", "teacher2"}
    states = [load_model(one).state_dict(), load_model(two).state_dict()]
    assert not torch.equal(states[0]["input_proj.weight"], states[1]["input_proj.weight"])
    # The item table is the first teacher's.
    assert torch.equal(states[0]["item_embeddings.weight"], states[1]["item_embeddings.weight"])


def test_several_teachers_need_a_term_of_scores(
    inputs: Inputs, sasrec: Artefact, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        distill(settings(losses={"cosine": 1.0}), inputs | {"teacher2": sasrec}, tmp_path / "s")
    assert caught.value.what == (
        "distill: several teachers are averaged by their scores, but no loss term uses scores."
    )


def test_a_sasrec_teaches_an_llm(inputs: Inputs, sasrec: Artefact, tmp_path: Path) -> None:
    student = distill(settings(backbone=BACKBONE), inputs | {"teacher": sasrec}, tmp_path / "s")
    model, table = load_recommender(student), load_model(sasrec).item_vectors()
    assert len(model.layers) == 2
    assert torch.equal(model.item_vectors(), table)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "distill: {} does not record which LLM it was trained from."),
        (
            {"init": "teacher"},
            "init: teacher: the teacher {} is a SASRec, not a recommender on an LLM.",
        ),
        (
            {"backbone": BACKBONE, "losses": {"norm": 1.0}},
            "losses.norm: {} is a SASRec, which has no blocks of an LLM to compare.",
        ),
    ],
)
def test_what_a_sasrec_cannot_teach_is_refused(
    inputs: Inputs, sasrec: Artefact, tmp_path: Path, other: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        distill(settings(**other), inputs | {"teacher": sasrec}, tmp_path / "s")
    assert caught.value.what == message.format(sasrec.path)
    assert not (tmp_path / "s").exists()


def test_a_sasrec_learns_from_an_llm(inputs: Inputs, sasrec: Artefact, tmp_path: Path) -> None:
    taught = distill(settings(dropout=0.1), inputs | {"student": sasrec}, tmp_path / "s")
    model, before = load_model(taught), load_model(sasrec)
    assert isinstance(model, Sasrec)
    assert model.config.dropout == 0.1
    assert not torch.equal(model.item_vectors(), before.item_vectors())
    assert not torch.equal(model.layers[0].qkv.weight, before.layers[0].qkv.weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tune": "lora"}, "distill.tune: the student is a SASRec, which has no LLM."),
        ({"backbone": BACKBONE}, "distill.backbone: the student is a SASRec, which has no LLM."),
        (
            {"residual_dropout": 0.1},
            "distill.residual_dropout: the student is a SASRec, which has no LLM.",
        ),
        (
            {"losses": {"logits": 1.0, "supervise": 1.0}},
            "losses.supervise: the student is a SASRec, which has no blocks of an LLM.",
        ),
    ],
)
def test_what_a_sasrec_cannot_learn_is_refused(
    inputs: Inputs, sasrec: Artefact, tmp_path: Path, other: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        distill(settings(**other), inputs | {"student": sasrec}, tmp_path / "s")
    assert caught.value.what == message


def test_a_student_teaches_the_next_one(inputs: Inputs, student: Artefact, tmp_path: Path) -> None:
    """The LLM of the first teacher is known to a chain of students of any length."""
    config = settings(layers=1, blocks=1)
    second = distill(config, inputs | {"teacher": student}, tmp_path / "second")
    third = distill(config, inputs | {"teacher": second}, tmp_path / "third")
    for artefact in (second, third):
        assert metrics_of(artefact)["trained_on"] == {
            "backbone": BACKBONE,
            "revision": None,
            "freeze_items": True,
        }
        assert len(load_recommender(artefact).layers) == 1


def test_a_sasrec_learns_the_order_and_the_scores_between_items(
    inputs: Inputs, sasrec: Artefact, tmp_path: Path
) -> None:
    losses = {"ranking": 1.0, "items": 1.0}
    made = distill(settings(losses=losses), inputs | {"student": sasrec}, tmp_path / "s")
    assert isinstance(load_model(made), Sasrec)
    epochs = metrics_of(made)["epochs"]
    assert isinstance(epochs, list) and {"ranking", "items"} <= set(epochs[0])
    with pytest.raises(UsageError) as caught:
        distill(settings(item_dim=8), inputs | {"student": sasrec}, tmp_path / "narrow")
    assert caught.value.what == (
        "item_dim: the student is a SASRec, whose layers have the width of its item table."
    )
