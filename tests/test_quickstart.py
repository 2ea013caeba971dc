"""The quick start itself: the real LLM and the real log, out of two wheels of the package index."""

import json
import time
from pathlib import Path

import pytest
import torch

from slmc.commands import cli

GATES = 4


def run_twice(folder: Path, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> str:
    """Run the quick start twice in one folder, check what it came to, and say what it took."""
    patch.chdir(folder)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        assert cli.call(["run", "quickstart", "-q"]) == 0
        seconds.append(time.perf_counter() - begin)
    found = json.loads((folder / "runs/quickstart/metrics.json").read_text())
    assert {step["stage"] for step in found["steps"]} >= {"teach", "distill", "export", "bench"}
    assert [verdict["outcome"] for verdict in found["verdicts"]] == ["pass"] * GATES
    captured.readouterr()
    assert cli.call(["run", "quickstart", "--plan", "--json"]) == 0
    plan = json.loads(captured.readouterr().out)
    assert {step["status"] for step in plan} == {"hit"}
    return "first run {:.0f} s, second {:.0f} s".format(*seconds)


@pytest.mark.slow
def test_the_quick_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print(run_twice(tmp_path, monkeypatch, capsys))


@pytest.mark.gpu
def test_the_quick_start_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Device and precision are chosen without being told."""
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    torch.cuda.reset_peak_memory_stats()
    took = run_twice(tmp_path, monkeypatch, capsys)
    peak = torch.cuda.max_memory_allocated()
    assert peak > 0, "the GPU has computed nothing"
    print(f"{torch.cuda.get_device_name()}: {took}; {peak / 2**30:.1f} GiB of GPU memory at most")
