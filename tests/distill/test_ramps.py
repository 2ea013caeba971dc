"""Loss weights that change during training: a number, or from a value to another over a share."""

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import TEACH, TOP

from slmc.artefact import Artefact
from slmc.commands.options import build
from slmc.config import LARGEST
from slmc.distill import task
from slmc.distill.config import DistillConfig, Losses, Ramp
from slmc.distill.distill import distill
from slmc.errors import RecipeError
from slmc.pipeline.keys import Outside, key_of
from slmc.recipe import load

FAST = {"layers": 2, "blocks": 2, "epochs": 2, "rows": 8, "warmup": 2, "dtype": "fp32"}
FALLING = {"from": 1.0, "to": 0.0, "over": 0.5}


def ramp(start: float, to: float, over: float) -> Ramp:
    return Ramp.model_validate({"from": start, "to": to, "over": over})


def test_by_hand() -> None:
    assert [ramp(1, 0.2, 0.5).at(done) for done in (0, 0.25, 0.5, 0.9)] == [1, 0.6, 0.2, 0.2]
    losses = Losses.model_validate({"cosine": 2, "logits": FALLING, "norm": FALLING | {"over": 1}})
    assert losses.at(0.25) == {"cosine": 2, "norm": 0.75, "logits": 0.5}
    assert losses.constant_from == 1 and Losses(cosine=1).constant_from == 0


@given(
    start=st.floats(0, 100), to=st.floats(0.01, 100), over=st.floats(0.01, 1), done=st.floats(0, 1)
)
def test_it_stays_between_its_ends_and_moves_one_way(
    start: float, to: float, over: float, done: float
) -> None:
    one = ramp(start, to, over)
    low, high = sorted((start, to))
    assert low - 1e-9 <= one.at(done) <= high + 1e-9
    assert (one.at(done) - one.at(done / 2)) * (to - start) >= -1e-9
    assert one.at(0) == start and one.at(over) == one.at(1) == to


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("0", ": should be greater than 0, not 0"),
        ("fast", ': should be a valid number, unable to parse string as a number, not "fast"'),
        ("{from: 1, to: 0.1}", ".over: is required"),
        ("{from: 1, to: 0.1, over: 2}", ".over: should be less than or equal to 1, not 2"),
        ("{from: -1, to: 1, over: 1}", ".from: should be greater than or equal to 0, not -1"),
        ("{from: 0, to: 0, over: 1}", ": from and to are both 0; leave the term out instead"),
        ("{frm: 1, from: 1, to: 1, over: 1}", ".frm: there is no key 'frm'. Did you mean 'from'?"),
        (
            f"{{from: {LARGEST + 1}, to: 1, over: 1}}",
            f".from: should be at most {LARGEST}, not 4294967296.0",
        ),
    ],
)
def test_messages(weight: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    step = f"  - distill: {{layers: 2, blocks: 2, losses: {{logits: {weight}}}}}\n"
    file.write_text(TOP + TEACH + step)
    with pytest.raises(RecipeError) as caught:
        load(str(file))
    assert caught.value.what.endswith(f": distill.losses.logits{message}")


@pytest.mark.parametrize(
    "sets",
    [
        ["distill.losses.logits={from: 1, to: 0.1, over: 0.5}"],
        [f"distill.losses.logits.{key}={value}" for key, value in
         (("from", 1), ("to", 0.1), ("over", 0.5))],
    ],
)  # fmt: skip
def test_recipe_set_and_options_read_the_same(sets: list[str], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(TOP + TEACH + "  - distill: {layers: 2, blocks: 2, losses: {cosine: 1}}\n")
    (config,) = [step.config for step in load(str(file), sets=sets).steps if step.id == "distill"]
    assert isinstance(config, DistillConfig)
    assert config.losses == Losses(cosine=1, logits=ramp(1, 0.1, 0.5))
    options: list[dict[tuple[str, ...], Any]] = [
        {("losses", "logits"): "{from: 1, to: 0.1, over: 0.5}"},
        {("losses", "logits", "from"): "1", ("losses", "logits", "to"): "0.1",
         ("losses", "logits", "over"): "0.5"},
    ]  # fmt: skip
    for option in options:
        assert build(DistillConfig, option, "x").losses.logits == ramp(1, 0.1, 0.5)


def test_settings_that_came_later_are_in_the_key_only_if_set() -> None:
    def parts(**settings: object) -> dict[str, Any]:
        config = DistillConfig.model_validate({"dtype": "fp32"} | settings)
        found: dict[str, Any] = key_of("distill", config, {}, Outside()).parts["config"]
        return found

    later = {"ranking_k": 5, "ranking_decay": 2.0, "item_dim": 32, "keep_heads": True}
    assert not set(later) & set(parts())
    assert set(parts()["losses"]) == {"cosine", "norm", "supervise", "logits"}
    assert {name: parts(**later)[name] for name in later} == later
    assert parts(losses={"ranking": 2, "logits": FALLING})["losses"] == {
        "cosine": None, "norm": None, "supervise": None, "ranking": 2.0, "logits": FALLING,
    }  # fmt: skip


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "teacher": teacher}


def settings() -> DistillConfig:
    losses = {"logits": FALLING, "ranking": {"from": 0, "to": 2, "over": 0.5}}
    return DistillConfig.model_validate(FAST | {"losses": losses, "checkpoint_s": 0})


def test_training_uses_the_weight_of_each_step(
    inputs: dict[str, Artefact], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="slmc.train"):
        distill(settings(), inputs, tmp_path / "s")
    logged = [r.__dict__["progress"] for r in caplog.records if "progress" in r.__dict__]
    terms = [one["terms"] for one in logged if "lr" in one]
    half = (len(terms) + 1) // 2
    assert terms[0]["ranking"] == 0 and all(one["ranking"] > 0 for one in terms[1:])
    assert all(one["logits"] > 0 for one in terms[:half])
    assert all(one["logits"] == 0 for one in terms[half:])


def test_a_killed_run_goes_on_with_the_same_weights(
    inputs: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(settings(), inputs, tmp_path / "whole")
    forward, calls, killed_at = task.Distillation.forward, [], 20

    def killed(self: task.Distillation, batch: task.Batch) -> Any:
        calls.append(batch.done)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(task.Distillation, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(settings(), inputs, tmp_path / "killed")
    again = distill(settings(), inputs, tmp_path / "killed")
    assert calls[killed_at] == calls[killed_at - 1] > 0  # not from the beginning
    assert again.digest == whole.digest
