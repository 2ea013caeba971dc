"""What a run lacks is told before anything runs."""

import sys
from types import ModuleType

import pytest
from running import made, statuses

from slmc.errors import MissingError
from slmc.pipeline import preflight
from slmc.stages import STAGES


def test_missing_extras_are_told_before_anything_runs(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    for name in ("export", "bench"):
        stage = replace(STAGES[name], extras={"not_there_1": "onnx", f"not_{name}": "onnx"})
        monkeypatch.setitem(STAGES, name, stage)
    with pytest.raises(MissingError) as caught:
        made()
    assert caught.value.what == "export, bench: not_bench, not_export, not_there_1 not installed."
    assert caught.value.remedy == "Install with `pip install 'slmc[onnx]'`."
    assert fakes.calls() == []
    assert len(made(until="distill").steps) == 7


def test_a_gpu_that_an_export_needs_is_missed_before_anything_runs(fakes: ModuleType) -> None:
    with pytest.raises(MissingError) as caught:
        made("export.precision=bf16")
    assert caught.value.what.startswith("export: precision bf16: ONNX Runtime multiplies it on")
    assert "take fp16" in caught.value.remedy
    assert fakes.calls() == []
    assert len(made("export.precision=bf16", until="distill").steps) == 7


def test_a_full_disk_is_told_before_anything_runs(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(until="prepare")
    monkeypatch.setattr(preflight, "NEEDED_MB", {"llm": 10**12, "small": 0})
    with pytest.raises(MissingError) as caught:
        made()
    assert caught.value.what.endswith(f"MB free; the run needs {10**12} MB.")
    assert fakes.calls() == ["prepare"]
    assert len(made(until="prepare").steps) == 1


def test_a_gpu_is_looked_for_only_where_one_is_named(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    module = ModuleType("slmc.model.device")
    module.choose = lambda device, dtype: asked.append(device)  # type: ignore[attr-defined]
    module.resolve_dtype = lambda device, dtype: "fp32"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slmc.model.device", module)
    first = made("teach.dtype=auto", "sasrec.device=auto", "sasrec.dtype=auto")
    assert asked == []
    assert first.artefacts()["teach"].manifest.config["dtype"] == "fp32"
    assert set(statuses(made().steps).values()) == {"hit"}
    assert set(statuses(made("device=cuda").steps).values()) == {"hit"}
    assert asked == []
    made("device=cuda", "seed=3")
    assert asked == ["cuda"]
