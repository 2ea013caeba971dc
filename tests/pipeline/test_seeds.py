"""The benchmark that trains with several seeds, on fake stages."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from running import RECIPE

SCRIPT = Path(__file__).parents[2] / "benchmarks/seeds.py"


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeds", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "seeds", module)
    spec.loader.exec_module(module)
    return module


def test_a_table_of_seeds(
    fakes: ModuleType,
    seeds: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("r.yaml").write_text(RECIPE)
    monkeypatch.setattr(sys, "argv", ["seeds.py", "r.yaml", "--seeds", "1,2,3", "--json", "n.json"])
    seeds.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "ndcg@10, full ranking, seen items left out, test, n = 40; 95 % intervals, two-sided"
    )
    head = "seed | distill | distill.control | teach | distill against distill.control"
    assert lines[2] == f"| {head} | distill against teach |"
    # The student and its control rank alike, each by one rank below the teacher.
    assert [line.split(" | ")[:5] for line in lines[4:]] == [
        [f"| {seed}", "0.4609", "0.4609", "0.5897", "+0.0 % [+0.0, +0.0]"] for seed in (1, 2, 3)
    ] + [["| mean", "0.4609", "0.4609", "0.5897", lines[7].split(" | ")[4]]]
    assert "-21.8 % [" in lines[7]
    # Teacher and baselines are made once, student and control for each seed.
    calls = fakes.calls()
    assert calls.count("teach") == calls.count("baselines") == 1
    assert calls.count("distill") == 6 and "export" not in calls
    told = json.loads(Path("n.json").read_text())
    assert [row["seed"] for row in told["rows"]] == ["1", "2", "3", "mean"]


def test_one_seed_is_refused(
    seeds: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["seeds.py", "r.yaml", "--seeds", "17"])
    with pytest.raises(SystemExit):
        seeds.main()
    assert "name at least two seeds" in capsys.readouterr().err
