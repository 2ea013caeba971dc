"""What pruning and quantizing take, and the modules beside the tests that several import."""

import sys
from pathlib import Path

import pytest

from slmc.artefact import Artefact

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "model": teacher}


@pytest.fixture(scope="module")
def parents(dataset: Artefact, student: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "model": student}
