"""Pruning in a recipe."""

from pathlib import Path

import pytest

from slmc.compress.config import PruneConfig
from slmc.errors import MissingError, RecipeError
from slmc.pipeline import preflight
from slmc.recipe import load as read_recipe

RECIPE = """\
version: 1
name: x
data: {source: a.csv}
steps:
  - teach: {backbone: 'random://llama', layers: 8}
  - distill: {layers: 4, blocks: 4}
  - prune: {layers: 3, heads: 0.67, ffn: 0.75}
  - distill: {id: recover, student: prune, blocks: 3, epochs: 1}
  - export:
"""


def test_a_recipe_that_prunes_and_recovers(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    for smoke in (False, True):
        recipe = read_recipe(str(file), smoke=smoke)
        steps = {step.id: step for step in recipe.steps}
        assert steps["prune"].inputs == {"data": "prepare", "model": "distill"}
        recover = {"data": "prepare", "teacher": "teach", "student": "prune"}
        assert steps["recover"].inputs == recover
        assert steps["export"].inputs["model"] == "recover"
    small = steps["prune"].config
    assert isinstance(small, PruneConfig)
    assert (small.layers, small.heads, small.round_to, small.calibration) == (2, 0.67, 16, 96)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers: 3,", "layers: 5,", "7: prune.layers: 5 layers are more than the 4 of 'distill'"),
        (
            "blocks: 3",
            "blocks: 4",
            "8: recover.blocks: 4 blocks are more than the 3 layers of 'prune'",
        ),
        ("ffn: 0.75", "ffn: 1.75", "7: prune.ffn: should be less than or equal to 1, not 1.75"),
    ],
)
def test_messages_of_a_recipe(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(file))
    assert caught.value.what == f"{file}:{message}"


def test_the_missing_extra_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    there = preflight.find_spec
    monkeypatch.setattr(
        preflight, "find_spec", lambda name: None if name == "torch_pruning" else there(name)
    )
    with pytest.raises(MissingError) as caught:
        preflight.check_extras(read_recipe(str(file)).steps)
    assert caught.value.what == "prune: torch_pruning not installed."
    assert caught.value.remedy == "Install with `pip install 'slmc[prune]'`."
    assert caught.value.exit_code == 4
