"""Which layers a student starts from: first, evenly spaced, influential, or from a depth report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from slmc.artefact import Artefact, draft
from slmc.config import Seeded
from slmc.data.calibration import histories
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.distill.selection import HISTORIES, select
from slmc.errors import UsageError, VerdictError
from slmc.model.layers import by_influence, with_layers
from slmc.model.loading import load_recommender
from slmc.model.redundancy import block_influence

FAST = {"epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32", "losses": {"logits": 1.0}}
UNTRAINED = FAST | {"lr": 1e-12, "projection_lr": 1e-12, "weight_decay": 0}
FROM_DEPTH = {"layers": {"from": "depth"}}
Inputs = dict[str, Artefact]


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> Inputs:
    return {"data": dataset, "teacher": teacher}


def settings(**other: object) -> DistillConfig:
    return DistillConfig.model_validate(FAST | other)


def point(*layers: int) -> dict[str, Any]:
    return {"depth": len(layers), "layers": list(layers)}


def report_of(teacher: Artefact, out: Path, *, stage: str = "depth", **numbers: object) -> Artefact:
    """A depth report with numbers by hand: angular wins with layer 1, first has no depth."""
    content = {
        "metric": "ndcg@10",
        "max_drop": "1%",
        "teacher": {"layers": 3},
        "ways": {
            "first": {"smallest": None},
            "influence": {"smallest": point(0, 2)},
            "angular": {"smallest": point(1)},
        },
        "choice": {"way": "angular", **point(1)},
        "redundancy": {"influence": [0.1, 0.3, 0.2]},
    } | numbers
    with draft(out) as work:
        (work.path / "metrics.json").write_text(json.dumps(content))
        inputs = {"teacher": teacher}
        return work.seal(kind="report", stage=stage, config=Seeded(), inputs=inputs)


def chosen(inputs: Inputs, **other: object) -> tuple[int, int, tuple[int, ...] | None]:
    """Layers, blocks and kept layers of a selection."""
    teacher, data = load_recommender(inputs["teacher"]), Dataset.open(inputs["data"])
    config, kept = select(settings(**other), inputs, teacher, data)
    assert isinstance(config.layers, int)
    return config.layers, config.blocks, kept


def test_the_first_layers_unless_something_is_said(inputs: Inputs) -> None:
    for select_by in (None, "first"):
        assert chosen(inputs, layers=2, blocks=2, select=select_by) == (2, 2, (0, 1))


def test_evenly_spaced(inputs: Inputs) -> None:
    assert chosen(inputs, layers=2, blocks=1, select="interval") == (2, 1, (0, 2))


def test_influence_without_a_report_is_measured(inputs: Inputs) -> None:
    sample = histories(Dataset.open(inputs["data"]), count=HISTORIES, seed=17)
    influence = block_influence(load_recommender(inputs["teacher"]), sample)
    expected = by_influence(influence, 2)
    assert chosen(inputs, layers=2, blocks=2, select="influence") == (2, 2, expected)


def test_influence_with_a_report_is_read(inputs: Inputs, tmp_path: Path) -> None:
    inputs["depth"] = report_of(inputs["teacher"], tmp_path / "d")
    assert chosen(inputs, layers=2, blocks=2, select="influence") == (2, 2, (1, 2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 1, (1,))),  # the way that wins, with its layers
        ({"select": "influence"}, (2, 2, (1, 2))),  # the depth of the way that is named
        ({"select": "interval"}, (1, 1, (0,))),  # not measured: the winning depth
    ],
)
def test_the_report_decides(
    inputs: Inputs, tmp_path: Path, settings: dict[str, object], expected: tuple[object, ...]
) -> None:
    inputs["depth"] = report_of(inputs["teacher"], tmp_path / "d")
    assert chosen(inputs, **FROM_DEPTH, **settings) == expected


def test_another_llm_takes_the_number_only(inputs: Inputs, tmp_path: Path) -> None:
    inputs["depth"] = report_of(inputs["teacher"], tmp_path / "d")
    assert chosen(inputs, **FROM_DEPTH, backbone="random://llama") == (1, 1, (0,))
    del inputs["depth"]
    assert chosen(inputs, layers=2, blocks=2, select="interval", backbone="x") == (2, 2, None)


@pytest.mark.parametrize(
    ("numbers", "settings", "error", "message"),
    [
        (
            {"choice": None},
            FROM_DEPTH,
            VerdictError,
            "distill: no depth below 3 layers is within 1% of ndcg@10, says {}.",
        ),
        (
            {},
            FROM_DEPTH | {"select": "first"},
            VerdictError,
            "distill: no depth below 3 layers is within 1% of ndcg@10 by first, says {}.",
        ),
        (
            {},
            FROM_DEPTH | {"losses": {"supervise": 1.0}},
            UsageError,
            "distill: the depth report chooses 1 layer, and losses.supervise needs at least 2 "
            "blocks.",
        ),
        ({}, {"layers": 2, "blocks": 1}, UsageError, "distill: the depth report is not used."),
        (
            {"stage": "bench"},
            FROM_DEPTH,
            UsageError,
            "depth: {} is a report of stage bench, not of depth.",
        ),
    ],
)
def test_a_report_that_cannot_be_used(
    inputs: Inputs,
    tmp_path: Path,
    numbers: dict[str, Any],
    settings: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    inputs["depth"] = report_of(inputs["teacher"], tmp_path / "d", **numbers)
    with pytest.raises(error) as caught:
        chosen(inputs, **settings)
    assert str(caught.value) == message.format(tmp_path / "d")


def test_a_report_of_another_model(inputs: Inputs, student: Artefact, tmp_path: Path) -> None:
    inputs["depth"] = report_of(student, tmp_path / "d")
    with pytest.raises(UsageError) as caught:
        chosen(inputs, **FROM_DEPTH)
    assert str(caught.value).endswith("is the report of another model, not of this teacher.")


def test_no_report(inputs: Inputs) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(inputs, **FROM_DEPTH)
    assert str(caught.value) == "distill: layers: {from: depth} needs the report of a depth step."


@pytest.mark.parametrize("other", [{"select": "interval"}, {"init": "teacher"}])
def test_more_layers_than_the_teacher_has(inputs: Inputs, other: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(inputs, layers=4, **other)
    assert str(caught.value) == "layers: 4 is more than the 3 layers of the teacher."


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (FROM_DEPTH, "layers: {from: depth}"),
        ({"layers": 2, "blocks": 2, "select": "first"}, "select: first"),
    ],
)
def test_a_student_that_is_an_artefact_keeps_its_layers(
    inputs: Inputs, student: Artefact, settings: dict[str, object], name: str
) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(inputs | {"student": student}, **settings)
    assert str(caught.value).startswith(f"distill: {name} chooses the layers of a new student, but")


def test_influence_is_not_that_of_another_llm() -> None:
    with pytest.raises(ValueError, match="select: influence is measured on the teacher's layers"):
        settings(layers=2, blocks=2, select="influence", backbone="other")


@pytest.mark.parametrize("init", ["teacher", "backbone"])
def test_the_student_starts_with_the_chosen_layers(
    inputs: Inputs, init: str, tmp_path: Path
) -> None:
    inputs["depth"] = report_of(
        inputs["teacher"], tmp_path / "d", choice={"way": "angular", **point(0, 2)}
    )
    config = DistillConfig.model_validate(UNTRAINED | FROM_DEPTH | {"init": init})
    made = distill(config, inputs, tmp_path / "s")
    student = load_recommender(made)
    assert made.manifest.metrics["layers"] == len(student.layers) == 2
    assert json.loads(made.file("metrics.json").read_text())["kept_layers"] == [0, 2]
    assert made.manifest.config["layers"] == {"from": "depth"}
    assert set(made.manifest.parents) == {"data", "teacher", "depth"}
    if init == "teacher":
        expected = with_layers(load_recommender(inputs["teacher"]), (0, 2)).state_dict()
        for name, tensor in student.state_dict().items():
            assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_evenly_spaced_layers_of_an_llm_are_its_own(
    dataset: Artefact, teacher: Artefact, tmp_path: Path
) -> None:
    from llms import save_llama

    from slmc.model import backbone

    llm = save_llama(tmp_path / "llm", layers=4)
    config = DistillConfig.model_validate(
        UNTRAINED | {"layers": 2, "blocks": 2, "select": "interval", "backbone": str(llm)}
    )
    inputs = {"data": dataset, "teacher": teacher}
    student = load_recommender(distill(config, inputs, tmp_path / "s")).backbone.state_dict()
    whole = backbone.load(str(llm)).model.state_dict()
    pairs = {"layers.0.": "layers.0.", "layers.1.": "layers.3."}
    compared = 0
    for ours, theirs in pairs.items():
        for name in [n for n in student if n.startswith(ours)]:
            assert torch.allclose(student[name], whole[name.replace(ours, theirs)], atol=1e-6)
            compared += 1
    assert compared >= 18
    with pytest.raises(UsageError) as caught:
        distill(config.model_copy(update={"layers": 5}), inputs, tmp_path / "more")
    assert str(caught.value) == f"layers: 5 is more than the 4 layers of backbone {llm}."
