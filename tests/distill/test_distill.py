"""Distillation: loss terms, the control run without them, cached teacher states, refusals."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from slmc.artefact import Artefact, load
from slmc.data.dataset import Dataset
from slmc.distill import states
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.errors import BrokenRunError, UsageError
from slmc.model.device import Placement
from slmc.model.loading import load_model
from slmc.model.recommender import SequentialRecommender
from slmc.training.next_item import training_rows

FAST = {"layers": 2, "blocks": 2, "epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32"}
TERMS = {"cosine": 1.0, "norm": 0.1, "supervise": 1.0, "logits": 1.0}
CPU = Placement(torch.device("cpu"), torch.float32)
Inputs = dict[str, Artefact]
VALIDATION = {"epoch", "lr", "valid_ndcg", "valid_ce"}


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> Inputs:
    return {"data": dataset, "teacher": teacher}


def settings(**other: object) -> DistillConfig:
    return DistillConfig.model_validate(FAST | {"losses": {"logits": 1.0}} | other)


def epochs_of(artefact: Artefact) -> list[dict[str, float]]:
    metrics = json.loads(artefact.file("metrics.json").read_text())
    epochs: list[dict[str, float]] = metrics["epochs"]
    return epochs


def test_every_term_is_recorded_and_falls(student: Artefact) -> None:
    first, last = epochs_of(student)
    assert set(first) == {"ce", *TERMS, "total", "grad_norm", *VALIDATION}
    assert all(last[term] < first[term] for term in ("ce", *TERMS, "total"))


def test_every_term_is_logged_at_every_step(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="slmc.train"):
        distill(settings(losses=TERMS), inputs, tmp_path / "s")
    logged = [r.__dict__["progress"] for r in caplog.records if "progress" in r.__dict__]
    steps = [one for one in logged if "lr" in one]
    assert len(steps) == steps[-1]["total"]
    assert all(set(step["terms"]) == {"ce", *TERMS, "total", "grad_norm"} for step in steps)
    validations = [one["terms"] for one in logged if "lr" not in one]
    assert [set(terms) for terms in validations] == [{"valid_ndcg", "valid_ce"}] * 2


def test_control_starts_as_the_student_and_takes_the_same_steps(
    inputs: Inputs, tmp_path: Path
) -> None:
    taught = distill(settings(epochs=30, patience=1), inputs, tmp_path / "taught")
    like = inputs | {"like": taught}
    control = distill(settings(losses={}, epochs=30, patience=1), like, tmp_path / "control")
    ends = [json.loads(a.file("metrics.json").read_text()) for a in (taught, control)]
    assert ends[0]["steps"] == ends[1]["steps"] and ends[0]["decay"] == ends[1]["decay"]
    assert ends[1]["stopped"] == "like"
    assert set(epochs_of(control)[0]) == {"ce", "total", "grad_norm", *VALIDATION}
    models = [load_model(a).state_dict() for a in (taught, control)]
    assert models[0].keys() == models[1].keys()
    assert not torch.equal(models[0]["input_proj.weight"], models[1]["input_proj.weight"])


def test_heads_of_the_terms_are_dropped(student: Artefact) -> None:
    assert not [n for n in load_model(student).state_dict() if "heads" in n or "teacher" in n]
    assert load(student.path).manifest.metrics["layers"] == 2


def test_a_student_of_another_width_learns_through_projections(
    inputs: Inputs, tmp_path: Path
) -> None:
    narrow = "random://qwen3?layers=2&hidden=16&heads=2&kv_heads=1&intermediate=32&head_dim=8"
    student = distill(settings(backbone=narrow, losses=TERMS), inputs, tmp_path / "s")
    model = load_model(student)
    assert isinstance(model, SequentialRecommender)
    assert model.config.backbone_config.hidden_size == 16
    assert {"cosine", "norm"} <= set(epochs_of(student)[0])


def test_a_student_with_adapters_ends_as_a_plain_model(inputs: Inputs, tmp_path: Path) -> None:
    plain = load_model(distill(settings(losses=TERMS), inputs, tmp_path / "plain")).state_dict()
    config = settings(losses=TERMS, tune="lora", lora={"modules": ["up_proj"]})
    with_lora = distill(config, inputs, tmp_path / "lora")
    adapted = load_model(with_lora).state_dict()
    assert adapted.keys() == plain.keys()
    assert {"cosine", "supervise"} <= set(epochs_of(with_lora)[0])


def test_blocks_that_do_not_divide_the_teacher(inputs: Inputs, tmp_path: Path) -> None:
    student = distill(settings(losses={"cosine": 1.0}, scale="none"), inputs, tmp_path / "s")
    assert epochs_of(student)[0]["cosine"] > 0


def test_a_student_can_start_from_a_model(
    inputs: Inputs, student: Artefact, tmp_path: Path
) -> None:
    config = settings(lr=1e-12, projection_lr=1e-12, weight_decay=0)
    again = distill(config, inputs | {"student": student}, tmp_path / "s")
    before, after = load_model(student).state_dict(), load_model(again).state_dict()
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)


def test_a_student_can_start_from_the_teacher(
    inputs: Inputs, teacher: Artefact, tmp_path: Path
) -> None:
    config = settings(init="teacher", lr=1e-12, projection_lr=1e-12, weight_decay=0)
    after = load_model(distill(config, inputs, tmp_path / "s")).state_dict()
    before = load_model(teacher).state_dict()
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in after)


def test_more_layers_than_the_teacher_has(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        distill(settings(layers=4, init="teacher"), inputs, tmp_path / "s")
    assert caught.value.what == "layers: 4 is more than the 3 layers of the teacher."
    assert not (tmp_path / "s").exists()


def test_two_runs_give_the_same_artefact(inputs: Inputs, tmp_path: Path) -> None:
    first, second = (distill(settings(losses=TERMS), inputs, tmp_path / name) for name in "ab")
    assert first.digest == second.digest


def computed(inputs: Inputs, packing: int = 0) -> states.TeacherStates:
    teacher = load_model(inputs["teacher"])
    assert isinstance(teacher, SequentialRecommender)
    rows = training_rows(settings(), Dataset.open(inputs["data"])).pack(packing)
    digest = inputs["teacher"].digest
    return states.compute(states.Request(teacher, digest, rows, (0, 2), CPU, True, True))


def test_states_are_those_of_the_teacher(inputs: Inputs) -> None:
    cached = computed(inputs, packing=3)
    teacher = load_model(inputs["teacher"])
    rows = training_rows(settings(), Dataset.open(inputs["data"])).pack(3)
    history = rows.item_ids[0][: int(np.argmax(rows.positions[0] == 0)) or None]
    end = np.flatnonzero(rows.segments[0] == rows.segments[0, 0])[-1]
    with torch.no_grad():
        vector = teacher.user_vectors(torch.from_numpy(rows.item_ids[:1, : end + 1]))[0]
    mask = torch.zeros(1, rows.item_ids.shape[1], dtype=torch.bool)
    mask[0, end] = True
    assert len(history)
    assert torch.allclose(cached.user_vectors(np.array([0]), mask)[0], vector, atol=2e-3)


def test_states_are_computed_once(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    first = computed(inputs, packing=4)
    monkeypatch.setattr(states._Computation, "go", lambda _: pytest.fail("computed again"))
    again = computed(inputs, packing=4)
    assert isinstance(again.blocks, np.memmap)
    assert first.blocks is not None and np.array_equal(first.blocks, again.blocks)


def test_a_killed_computation_of_states_resumes_with_the_same_bits(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, cache_of_the_tests: Path
) -> None:
    whole = computed(inputs, packing=5)
    assert isinstance(whole.blocks, np.memmap)
    folder = Path(str(whole.blocks.filename)).parent
    expected = {f.name: f.read_bytes() for f in folder.iterdir()}
    folder.rename(cache_of_the_tests / "kept")
    monkeypatch.setattr(states, "FLUSH_EVERY", 2)
    store, calls = states._Computation._batch, []

    def killed(self: states._Computation, part: slice) -> None:
        calls.append(part)
        if len(calls) == 4:
            raise KeyboardInterrupt
        store(self, part)

    monkeypatch.setattr(states._Computation, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        computed(inputs, packing=5)
    assert not folder.exists()
    computed(inputs, packing=5)
    assert calls[4].start == 2 * states.BATCH
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == expected


def test_a_state_that_is_not_finite_ends_the_run(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "unit_of", lambda _: 1e-9)
    with pytest.raises(BrokenRunError) as caught:
        computed(inputs, packing=6)
    assert caught.value.what.startswith("teacher states: a state is not finite in float16")


def test_large_states_are_stored_divided_by_a_power_of_two(inputs: Inputs) -> None:
    assert states.unit_of(torch.tensor([3.0])) == 1.0
    assert states.unit_of(torch.tensor([-1e6])) == 64.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"losses": {"cosine": 0}}, "Input should be greater than 0"),
        ({"blocks": 3}, "3 blocks do not fit into 2 layers"),
        ({"blocks": 1, "losses": {"supervise": 1.0}}, "losses.supervise needs at least 2 blocks"),
        ({"losses": {"kl": 1.0}}, "Extra inputs are not permitted"),
    ],
)
def test_invalid_settings_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**config)
