"""A file for a recipe."""

from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that messages show in the same way everywhere."""
    monkeypatch.chdir(tmp_path)
    return Path("r.yaml")
