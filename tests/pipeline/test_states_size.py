"""``--plan`` tells the size of the teacher's states, as soon as it can be known."""

import pytest

from slmc.artefact import Artefact
from slmc.distill.config import DistillConfig
from slmc.distill.sizes import states_bytes
from slmc.pipeline import planning
from slmc.pipeline.keys import Key
from slmc.recipe.steps import Step


def test_the_plan_tells_the_size_of_states(
    dataset: Artefact, teacher: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DistillConfig(layers=2, blocks=2)
    step = Step("distill", "distill", config, {"data": "prepare", "teacher": "teach"})
    keys: dict[str, Key | None] = {"prepare": Key({"n": 1}), "teach": Key({"n": 2})}
    cached = {keys["prepare"].digest: dataset, keys["teach"].digest: teacher}  # type: ignore[union-attr]
    monkeypatch.setattr(planning.store, "look", cached.get)
    size = planning._states_bytes(step, keys)
    assert size == states_bytes(config, {"data": dataset, "teacher": teacher})
    # 80 users with 17 training targets, rows of 10 items, 2 packings, 2 blocks of width 32.
    assert size == 136 * 10 * 2 * (2 * 32) * 2
    assert planning._states_bytes(step, keys | {"teach": None}) is None
    cached.pop(keys["prepare"].digest)  # type: ignore[union-attr]
    assert planning._states_bytes(step, keys) is None
