"""Fake stages in the place of the real ones."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import slmc.report
from slmc.stages import STAGES

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Fake stages, an empty cache, a folder to run in with a log and a recipe."""
    from running import RECIPE

    spec = importlib.util.spec_from_file_location("fake_stages", HELPERS / "fake_stages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, stage)
        monkeypatch.setattr(stage.config, "libraries", stage.config.libraries)
    module.install(STAGES)
    # It reads files that fake datasets and models do not have.
    monkeypatch.setattr("slmc.distill.sizes.states_bytes", lambda config, inputs: 0)
    monkeypatch.setattr(slmc.report, "write", lambda result: [], raising=False)
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text("a,b,1")
    Path("r.yaml").write_text(RECIPE)
    return module
