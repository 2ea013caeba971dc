"""Inputs of pruning and quantization."""

import pytest

from slmc.artefact import Artefact


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "model": teacher}


@pytest.fixture(scope="module")
def parents(dataset: Artefact, student: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "model": student}
