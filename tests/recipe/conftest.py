"""A file for a recipe, and the module beside the tests that they import."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that messages show in the same way everywhere."""
    monkeypatch.chdir(tmp_path)
    return Path("r.yaml")
