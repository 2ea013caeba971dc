"""The command line: what it prints where, its exit codes, and no traceback ever."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.main import get_command

from slmc import artefact
from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.config import Seeded

HELP_S = 0.5
"""What ``slmc --help`` may take; the best of several tries counts, the machine being shared."""
TRIES = 5
NO_PROMPT = {"COLUMNS": "120", "NO_COLOR": "1"}

Captured = pytest.CaptureFixture[str]


def slmc(*arguments: object) -> int:
    return cli.call([str(argument) for argument in arguments])


def processor_seconds() -> float:
    """Processor time of finished child processes, which a busy machine hardly changes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    times = []
    for _ in range(TRIES):
        begin = processor_seconds()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "slmc", "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | NO_PROMPT,
        )
        times.append(processor_seconds() - begin)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "polars", "transformers", "pydantic", "numpy", "yaml"}
    assert min(times) < HELP_S
    for name, subcommand in cli.COMMANDS.items():
        assert name in done.stdout and subcommand.summary.split()[0] in done.stdout


def test_importing_slmc_and_the_cli_imports_no_torch() -> None:
    code = (
        "import sys, slmc, slmc.commands.cli, slmc.stages, slmc.recipe, slmc.pipeline, "
        "slmc.commands.console, slmc.report, slmc.commands.diagnosis\n"
        f"for name in {sorted(cli.COMMANDS)!r}: slmc.commands.cli.command(name)\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_the_help_of_the_group_says_what_the_command_says(name: str) -> None:
    assert (cli.command(name).help or "").splitlines()[0] == cli.COMMANDS[name].summary


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: Captured) -> None:
    assert slmc(name, "--help") == 0
    assert f"slmc {name}" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["-h", "--help"])
@pytest.mark.parametrize("path", ["", "data", "data check", "recipe", "recipe ls", "cache", "run"])
def test_help_is_asked_for_in_two_ways(path: str, asked: str, capsys: Captured) -> None:
    assert slmc(*path.split(), asked) == 0
    assert " ".join(["Usage: slmc", *path.split()]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"), [("di", "distill"), ("data pre", "prepare"), ("prune --ff", "--ffn")]
)
def test_the_shell_is_told_how_a_word_goes_on(typed: str, offered: str) -> None:
    words = f"slmc {typed}"
    asked = {"_SLMC_COMPLETE": "complete_bash", "COMP_WORDS": words}
    done = subprocess.run(
        [sys.executable, "-m", "slmc"],
        capture_output=True,
        text=True,
        env=os.environ | asked | {"COMP_CWORD": str(len(words.split()) - 1)},
    )
    assert (done.returncode, offered in done.stdout.split()) == (0, True), done.stderr


def test_every_command_is_built_from_what_the_stages_know() -> None:
    for name in ("teach", "distill", "export", "bench"):
        from slmc.commands.options import settings
        from slmc.stages import STAGES

        offered = {o for p in cli.command(name).params for o in p.opts}
        assert {one.option for one in settings(STAGES[name].config)} <= offered


def test_version(capsys: Captured) -> None:
    assert slmc("--version") == 0
    assert capsys.readouterr() == ("slmc 0.1.0\n", "")


def shuffled(engine: Path, out: Path) -> Path:
    """The engine with the rows of its item table in another order: it answers, and wrongly."""
    with artefact.draft(out) as work:
        shutil.copytree(engine, work.path, dirs_exist_ok=True)
        (work.path / artefact.MANIFEST).unlink()
        file = work.path / "onnx/model.onnx"
        graph = onnx.load(file)
        table = next(
            t for t in graph.graph.initializer if t.name.endswith("item_embeddings.weight")
        )
        rows = numpy_helper.to_array(table)
        order = np.r_[0, 1 + np.random.default_rng(0).permutation(len(rows) - 1)]
        table.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rows[order]), table.name))
        file.write_bytes(graph.SerializeToString())
        return work.seal(kind="engine", stage="export", config=Seeded(), inputs={}).path


def test_the_pipeline_of_single_stages_composes(
    log_csv: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def path_of(*arguments: object) -> str:
        assert slmc(*arguments, "-q") == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return out.strip()

    data = path_of("data", "prepare", log_csv, "--history", "10", "-o", "data")
    assert data == "data"
    sasrec = tmp_path / "no"
    assert slmc("teach", "--data", data, "--sasrec", sasrec, "--backbone", "x") == 2
    capsys.readouterr()
    backbone = "random://llama?layers=2&hidden=16&heads=2&kv_heads=2&intermediate=32"
    quick = ["--epochs", "1", "--dtype", "fp32"]
    teacher = path_of(
        "teach", "--data", data, "--backbone", backbone, *quick, "--must_beat.otherwise", "warn"
    )
    assert artefact.load(Path(teacher)).manifest.config["layers"] is None
    saved = tmp_path / "saved.yaml"
    student = path_of(
        "distill", teacher, "--layers", "2", "--blocks", "2", *quick, "--save-recipe", saved
    )
    engine = path_of("export", student, "-o", "engine", "--top-k", "20")

    assert slmc("validate", engine, "--baseline", student, "--max-drop", "ndcg@10=1%") == 0
    out = capsys.readouterr().out
    assert "pass, max_drop 1%" in out and "users can detect a loss of" in out
    assert "candidate: engine" in out and "baseline: " in out and "full ranking, " in out

    spoilt = shuffled(Path(engine), tmp_path / "shuffled")
    drop = ["--max-drop", "ndcg@10=1%"]
    assert slmc("validate", spoilt, "--baseline", student, "--data", data, *drop) == 1
    assert "regression" in capsys.readouterr().out

    gates = ["--max-drop", "ce=0.5", "--min", "overlap@10=0.99", "--max", "size_mb=0.0001"]
    assert slmc("validate", engine, "--baseline", student, *gates, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [v["outcome"] for v in found["verdicts"]] == ["pass", "pass", "regression"]

    assert slmc("recommend", engine, "i1", "i2", "-k", "3", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 3

    # The saved recipe makes the same, so that everything is in the cache already.
    assert slmc("run", saved, "--plan", "--json") == 0
    plan = {step["id"]: step["status"] for step in json.loads(capsys.readouterr().out)}
    assert plan["prepare"] == plan["teach"] == plan["distill"] == "hit"

    assert slmc("show", teacher, student) == 0
    assert "stage: distill" in capsys.readouterr().out
    assert slmc("diff", teacher, student, "--json") == 0
    assert json.loads(capsys.readouterr().out)["stage"] == ["teach", "distill"]
    assert slmc("diff", student, student) == 0
    assert capsys.readouterr().out == "no difference\n"

    # Nothing links to these artefacts, so that all of them go; the copies stay.
    assert slmc("cache", "gc", "--dry-run", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) >= 6
    assert slmc("cache", "gc", "--yes") == 0
    assert not Path(student).exists() and Path(engine, "slmc.json").is_file()
    capsys.readouterr()

    assert slmc("bench", engine) == 2
    assert capsys.readouterr().err == (
        "error: the dataset that engine was made from is not in the cache.\n"
        "  Name it with --data.\n"
    )


def test_out_is_never_overwritten_without_force(
    log_csv: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "data"
    assert slmc("data", "prepare", log_csv, "-o", out, "-q") == 0
    capsys.readouterr()
    assert slmc("data", "prepare", log_csv, "-o", out, "-q", "--core", "2") == 2
    assert capsys.readouterr() == (
        "",
        f"error: {out} exists already; it was not changed.\n"
        "  Name another --out, or pass --force to replace an artefact.\n",
    )
    assert slmc("data", "prepare", log_csv, "-o", out, "-q", "--core", "2", "--force") == 0
    assert artefact.load(out).manifest.config["core"] == 2


def test_edited_weights_are_refused(dataset: Artefact, tmp_path: Path, capsys: Captured) -> None:
    copied = artefact.copy(dataset, tmp_path / "data")
    with (copied.path / "items.parquet").open("ab") as stream:
        stream.write(b"x")
    assert slmc("data", "describe", copied.path) == 2
    assert capsys.readouterr().err == (
        f"error: {copied.path}/items.parquet has changed since it was sealed.\n"
        "  Copy the artefact again, or run the command again that made it.\n"
    )


def test_data_check_tells_what_can_be_seen_and_writes_nothing(
    log_csv: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert slmc("data", "check", log_csv, "--history", "10") == 0
    out = capsys.readouterr().out
    assert "test_users: 80" in out and "ndcg@10: 80 users can detect a loss of" in out
    assert (
        "0.0 % of the interactions, and 0 of 80 test targets (0.0 %), have the same time as the "
        "user's interaction before"
    ) in out
    assert list(tmp_path.iterdir()) == []


def test_data_check_ends_as_prepare_would(tmp_path: Path, capsys: Captured) -> None:
    log = tmp_path / "log.csv"
    good = "".join(f"u{u},i{i},{i}\n" for u in range(6) for i in range(6))
    log.write_text("user_id,item_id,timestamp\n" + good + ",,\n" * 30)
    codes = [slmc("data", command, log) for command in ("check", "prepare")]
    assert codes == [2, 2]
    assert "Traceback" not in capsys.readouterr().err


def test_recipes(tmp_path: Path, capsys: Captured) -> None:
    assert slmc("recipe", "ls") == 0
    assert "quickstart" in capsys.readouterr().out
    copied = tmp_path / "mine.yaml"
    assert slmc("recipe", "cp", "quickstart", copied) == 0
    assert slmc("recipe", "cp", "quickstart", copied) == 2
    assert capsys.readouterr().err == (
        f"error: {copied} exists already; it was not changed.\n"
        "  Name another file, or pass --force.\n"
    )
    assert slmc("recipe", "check", copied) == 0
    assert "mine: " in capsys.readouterr().out
    assert slmc("recipe", "show", copied, "--resolved", "--set", "distill.layers=3") == 0
    assert "layers: 3" in capsys.readouterr().out
    assert slmc("recipe", "schema") == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def test_a_recipe_with_faults_lists_them_all(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "version: 1\nname: bad\ndata: {source: x.csv, hstory: 3}\nsteps:\n- distil: {}\n"
    )
    assert slmc("run", file) == 2
    error = capsys.readouterr().err
    assert f"{file}:3" in error and f"{file}:5" in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_doctor(capsys: Captured) -> None:
    assert slmc("doctor", "--json") == 0
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["slmc"]["found"] == "0.1.0"
    assert {"python", "torch", "processor", "memory", "cache", "CUDA"} <= set(found)


def test_doctor_says_what_is_missing_with_exit_4(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SLMC_CACHE", str(blocked / "cache"))
    assert slmc("doctor") == 4
    assert "cannot be written" in capsys.readouterr().out


def test_doctor_survives_what_it_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from slmc.commands import diagnosis as doctor

    def broken() -> list[doctor.Finding]:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(doctor, "_memory", broken)
    states = {one.what: one for one in doctor.examine()}
    assert states["memory"] == doctor.Finding("memory", "without", "ZeroDivisionError: no")


def test_the_root_command_knows_all_commands() -> None:
    assert sorted(get_command(cli.app).commands) == sorted(cli.COMMANDS)
