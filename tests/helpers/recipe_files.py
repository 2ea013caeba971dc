"""Recipes that the tests write, and how they are read."""

from pathlib import Path

import pytest

from slmc.errors import RecipeError
from slmc.recipe import Recipe, load

TEACH = "  - teach: {backbone: 'random://llama', layers: 4}\n"
TOP = "version: 1\nname: x\ndata: {source: a.csv}\nsteps:\n"
FULL = (
    TOP
    + TEACH
    + "  - distill: {layers: 2, blocks: 2, control: true}\n  - export:\n  - bench:\n"
    + "gates:\n  - {metric: ndcg@10, baseline: teach, max_drop: 3%}\n"
    + "  - {metric: overlap@10, baseline: source, min: 0.9}\n"
)
SWEEP = "sweep: {distill.layers: [2, 3], distill.losses.logits: [0.5, 1]}\n"
STUDENT = "  - distill: {layers: 2, blocks: 2}\n"
GATED = "gates:\n  - {metric: mrr, on: %s, %s}\n"


def read(file: Path, text: str, *sets: str, smoke: bool = False, **env: str) -> Recipe:
    file.write_text(text)
    return load("./r.yaml", sets=sets, smoke=smoke, env=env)


def faults(file: Path, text: str | bytes, *sets: str, **env: str) -> list[str]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load("./r.yaml", sets=sets, env=env)
    return caught.value.what.splitlines()
