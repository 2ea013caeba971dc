"""Pages and pictures of the documentation that a script of ``benchmarks/`` writes."""

import json
from pathlib import Path
from xml.dom import minidom

import pytest
from benchmark_scripts import script

ROOT = Path(__file__).parent.parent
SCALE = ROOT / "docs/scale.md"


def test_the_reference_of_keys_is_up_to_date() -> None:
    page = script("reference").page()
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == page, (
        "run: python benchmarks/reference.py --write docs/reference.md"
    )


def test_the_reference_shows_type_default_and_bounds() -> None:
    lines = (ROOT / "docs/reference.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| `split.by` | `leave-one-out`, `time` |") for line in lines) == 1
    assert any(
        line.startswith("| `losses.cosine` | number > 0, mapping or null | `1.0` |")
        for line in lines
    )
    assert any(line.startswith("| `backbone`° | text | required |") for line in lines)


def write_run(folder: Path) -> None:
    """The files of a run that the picture reads: log, teacher, student, engine, a gate."""
    ranked = {"metrics": {"ndcg@10": {"value": 0.1, "se": 0.01}}, "n": 30}
    model = {"parameters": 2_000_000, "layers": 2, "size_mb": 8.0}
    bench = {"batches": {"1": {"engine": {"latency_ms": {"p50": 4.0}}}}}
    metrics = {
        "prepare": {"rows": 1000, "users": 30, "items": 20, "interactions": 900},
        "baselines": {"popularity": {"test": ranked}},
        "teach": model,
        "distill": model,
        "export": model,
        "bench": bench,
    }
    parents = {
        "distill": {"teacher": "of-teach"},
        "export": {"model": "of-distill"},
        "bench": {"engine": "of-export"},
    }
    for number, step in enumerate(metrics, start=1):
        (folder / f"{number:02}-{step}").mkdir(parents=True)
        manifest = json.dumps({"parents": parents.get(step, {})})
        (folder / f"{number:02}-{step}/slmc.json").write_text(manifest)
    gate = {"metric": "ndcg@10", "max_drop": "15%"}
    change = {"change": -0.04, "low": -0.09, "high": 0.01, "relative": True}
    verdict = {"gate": gate, "on": "export", "baseline": "teach", "failed": False, "binding": True}
    whole = {
        "recipe": "tiny<1>",
        "steps": [
            {"id": step, "stage": step, "digest": f"of-{step}", "metrics": values}
            for step, values in metrics.items()
        ],
        "evaluations": {"teach": ranked, "distill": ranked, "export": ranked},
        "verdicts": [verdict | change],
    }
    (folder / "metrics.json").write_text(json.dumps(whole))


def test_the_picture_shows_the_numbers_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    picture = script("picture")
    text = picture.picture(picture.Run(tmp_path / "run"))
    for words in (
        "tiny&lt;1&gt;, 30 test users", "1,000 rows", "2 layers, 2.0 M parameters",
        "NDCG@10 0.1000 ±0.0196", "p50 4 ms in ONNX Runtime", "1 of 1 gates passed",
        "NDCG@10 -4.0 % [-9.0, +1.0]", "against the teacher, budget 15%",
        "popularity: NDCG@10 0.1000 ±0.0196",
    ):  # fmt: skip
        assert words in text
    assert [box.title for box in picture.boxes(picture.Run(tmp_path / "run"))] == [
        "log", "dataset", "teacher", "student", "engine", "verdict",
    ]  # fmt: skip
    assert "prefers-color-scheme:dark" in text
    minidom.parseString(text)


def test_the_picture_of_the_documentation_is_an_svg() -> None:
    minidom.parse(str(ROOT / "docs/way.svg"))


def test_the_table_of_costs_is_up_to_date(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text(SCALE.read_text().replace("core hours", "changed"))
    script("scale").main(["--write", str(page)])
    assert page.read_text() == SCALE.read_text()


def test_twice_the_users_take_twice_the_hours(capsys: pytest.CaptureFixture[str]) -> None:
    hours = []
    for users in ("1e9", "2e9"):
        script("scale").main(["--users", users, "--items", "1e6"])
        row = next(line for line in capsys.readouterr().out.splitlines() if "`score`" in line)
        hours.append(int(row.split("|")[5].replace(",", "")))
    assert hours[1] == pytest.approx(2 * hours[0], abs=1)
