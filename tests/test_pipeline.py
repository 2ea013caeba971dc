"""Keys, cache, resume, order and exit codes, on stages that need no torch."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import slmc.report
from slmc import cache
from slmc.artefact import MANIFEST, load
from slmc.distill.config import DistillConfig
from slmc.errors import (
    ArtefactError,
    BrokenRunError,
    MissingError,
    RecipeError,
    UndecidedError,
    UsageError,
    VerdictError,
)
from slmc.pipeline import (
    PlannedStep,
    RunResult,
    StepResult,
    exit_code,
    plan,
    preflight,
    run,
    run_stage,
    store,
)
from slmc.pipeline.keys import Outside, key_of
from slmc.recipe import load as read
from slmc.stages import STAGES

TESTS = Path(__file__).parent
RECIPE = """version: 1
name: x
device: cpu
dtype: fp32
data: {source: log.csv}
steps:
  - teach: {backbone: any, layers: 4}
  - distill: {layers: 2, blocks: 2, control: true}
  - export:
  - bench:
"""
ORDER = [
    "prepare",
    "sasrec",
    "baselines",
    "teach",
    "evaluate.teach",
    "distill",
    "evaluate.distill",
    "distill.control",
    "evaluate.distill.control",
    "export",
    "evaluate.export",
    "bench",
]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Fake stages, an empty cache, a folder to run in with a log and a recipe."""
    spec = importlib.util.spec_from_file_location("fake_stages", TESTS / "fake_stages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, stage)
    module.install(STAGES)
    monkeypatch.setattr(slmc.report, "write", lambda result: [], raising=False)
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text("a,b,1")
    Path("r.yaml").write_text(RECIPE)
    return module


def made(*sets: str, gates: str = "", **options: Any) -> RunResult:
    Path("r.yaml").write_text(RECIPE + gates)
    return run(read("r.yaml", sets=sets), **options)


def statuses(steps: list[PlannedStep] | list[StepResult]) -> dict[str, str]:
    return {step.id: step.status for step in steps}


def digests(result: RunResult) -> dict[str, str]:
    return {step.id: step.artefact.digest for step in result.steps}


def test_the_order_and_the_result(fakes: ModuleType) -> None:
    seen: list[PlannedStep | StepResult] = []
    result = made(on_step=seen.append)
    assert [step.id for step in result.steps] == ORDER
    assert set(statuses(result.steps).values()) == {"run"}
    assert set(result.evaluations) == {"teach", "distill", "distill.control", "export"}
    assert result.artefacts()["export"].manifest.kind == "engine"
    assert [(type(step), step.id) for step in seen] == [
        (kind, name) for name in ORDER for kind in (PlannedStep, StepResult)
    ]
    assert all(step.key == step.artefact.manifest.key for step in result.steps)
    assert exit_code(result) == 0


def test_a_second_run_is_answered_from_the_cache(fakes: ModuleType) -> None:
    first = made()
    begun = fakes.calls()
    second = made()
    assert fakes.calls() == begun
    assert set(statuses(second.steps).values()) == {"hit"}
    assert digests(second) == digests(first)


def test_two_empty_caches_give_the_same_digests(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = made()
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "other"))
    assert digests(made()) == digests(first)


@pytest.mark.parametrize(
    ("change", "part", "run_again"),
    [
        ("distill.lr=0.5", "config.lr", ORDER[5:]),
        ("teach.layers=3", "config.layers", ORDER[3:]),
        ("seed=3", "config.seed", ORDER),
        ("bench.rounds=4", "config.rounds", ["bench"]),
        ("evaluate.exclude_seen=true", None, [n for n in ORDER if n.startswith("evaluate.")]),
        ("dtype=bf16", None, ORDER[1:]),
        ("device=cpu", None, []),
        ("teach.checkpoint_s=5", None, []),
    ],
)
def test_what_a_change_runs_again(
    fakes: ModuleType, change: str, part: str | None, run_again: list[str]
) -> None:
    made()
    planned = plan(read("r.yaml", sets=[change]))
    changed = [step.id for step in planned if step.status != "hit"]
    # A step after one that has to run cannot be known to be a hit yet.
    assert changed[:1] == run_again[:1]
    if part is not None:
        assert planned[ORDER.index(run_again[0])].changed == [part]
    again = [step.id for step in made(change).steps if step.status == "run"]
    assert set(again) <= set(run_again) and again[:1] == run_again[:1]


def test_a_change_of_the_log_or_of_a_library_changes_the_key(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    Path("log.csv").write_text("other")
    first = plan(read("r.yaml"))
    assert first[0].changed == ["fingerprint.log"]
    assert first[1] == PlannedStep("sasrec", "sasrec", None, "run", ["inputs.data"])
    Path("log.csv").write_text("a,b,1")
    monkeypatch.setattr("slmc.pipeline.keys.versions", lambda names: {"slmc": "9"})
    assert plan(read("r.yaml"))[0].changed == ["versions.pydantic", "versions.slmc"]


def test_a_plan_runs_nothing_and_writes_nothing(fakes: ModuleType, tmp_path: Path) -> None:
    planned = plan(read("r.yaml"))
    assert [step.id for step in planned] == ORDER
    assert set(statuses(planned).values()) == {"run"}
    assert not any(step.changed for step in planned)
    assert fakes.calls() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "r.yaml"]


def test_until(fakes: ModuleType) -> None:
    gate = "gates:\n  - {metric: size_mb, max: 1}\n"
    result = made(until="distill", gates=gate)
    assert [step.id for step in result.steps] == ORDER[:7]
    assert exit_code(result) == 0
    assert result.notes == ["gate size_mb on export: not judged; not made in this run: export"]
    assert statuses(made(gates=gate).steps)["distill"] == "hit"
    with pytest.raises(RecipeError) as caught:
        made(until="exprt")
    assert caught.value.what == "--until exprt: there is no such step. Did you mean 'export'?"


@pytest.mark.parametrize(
    ("crash", "what", "advice"),
    [
        ("", "step distill: RuntimeError: tensors do not fit", ""),
        (
            "memory",
            "step distill: MemoryError",
            " with fewer `rows` (or a smaller `batch`): memory ran out",
        ),
    ],
)
def test_a_crash_leaves_no_artefact_and_the_same_command_goes_on(
    fakes: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    crash: str,
    what: str,
    advice: str,
) -> None:
    Path("distill.crash").write_text(crash)
    with pytest.raises(BrokenRunError) as caught:
        made("seed=17")
    assert caught.value.what == what
    assert caught.value.remedy == (
        "What was computed is kept. Go on with `slmc run r.yaml --set seed=17`"
        f"{advice}; log.jsonl has the whole trace."
    )
    kept = [p for p in cache.objects().iterdir() if not p.name.startswith(".")]
    assert sorted(load(path).manifest.stage for path in kept) == [
        "baselines",
        "evaluate",
        "prepare",
        "sasrec",
        "teach",
    ]
    assert set(json.loads(Path("runs/x/recipe.lock").read_text())["steps"]) == set(ORDER[:5])
    Path("distill.crash").unlink()
    planned = statuses(plan(read("r.yaml")))
    assert (planned["teach"], planned["distill"], planned["export"]) == ("hit", "resume", "run")
    result = made()
    assert statuses(result.steps)["distill"] == "resume"
    assert not list(cache.objects().glob(".*"))
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "other"))
    assert digests(made()) == digests(result)


def test_errors_of_a_stage_pass_through(fakes: ModuleType) -> None:
    Path("export.crash").write_text("verdict")
    with pytest.raises(VerdictError, match="parity: no"):
        made()
    Path("export.crash").write_text("interrupt")
    with pytest.raises(KeyboardInterrupt):
        made()
    assert statuses(plan(read("r.yaml")))["export"] == "resume"


def test_an_edited_artefact_is_set_aside_and_made_again(
    fakes: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    first = made()
    edited = first.artefacts()["distill"].path
    (edited / "payload.bin").write_bytes(b"edited")
    second = made()
    assert statuses(second.steps) == {**dict.fromkeys(ORDER, "hit"), "distill": "run"}
    assert digests(second) == digests(first)
    aside = edited.parent / f".{edited.name}.broken-1"
    assert (aside / "payload.bin").read_bytes() == b"edited"
    assert caplog.messages == [
        f"{edited / 'payload.bin'} is not the file that was sealed. "
        f"It is kept as {aside}, and made again."
    ]


@pytest.mark.parametrize("name", ["other-key", "no-manifest"])
def test_what_is_not_the_artefact_of_its_key_is_set_aside(fakes: ModuleType, name: str) -> None:
    first = made(until="sasrec")
    dataset, sasrec = (first.artefacts()[step].path for step in ("prepare", "sasrec"))
    if name == "no-manifest":
        (sasrec / MANIFEST).unlink()
    else:
        manifest = json.loads((sasrec / MANIFEST).read_text())
        (sasrec / MANIFEST).write_text(json.dumps({**manifest, "key": dataset.name}))
    assert statuses(made(until="sasrec").steps) == {"prepare": "hit", "sasrec": "run"}
    assert (sasrec.parent / f".{sasrec.name}.broken-1").is_dir()


def test_a_cache_that_cannot_be_written(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMC_CACHE", str(Path("log.csv").absolute()))
    with pytest.raises(MissingError) as caught:
        made()
    assert caught.value.what == (
        f"the cache {Path('log.csv').absolute()} cannot be written: Not a directory."
    )
    assert caught.value.exit_code == 4


def start(code: str) -> subprocess.Popen[str]:
    """Python in another process, with the fakes in place."""
    head = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import fake_stages; "
        "from slmc.stages import STAGES; fake_stages.install(STAGES); import slmc.report; "
        "slmc.report.write = lambda result: []\n"
        "from slmc.recipe import load; from slmc.pipeline import run\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_begun(fakes: ModuleType, stage: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while stage not in fakes.calls():
        assert time.monotonic() < end, f"{stage} has not begun"
        time.sleep(0.01)


def test_the_second_of_two_processes_waits_for_the_first(fakes: ModuleType) -> None:
    Path("prepare.wait").touch()
    code = "print(run(load('r.yaml'), until='prepare').steps[0].status)"
    both = [start(code), start(code)]
    said = [process.communicate(timeout=60) for process in both]
    assert sorted(out.strip() for out, _ in said) == ["hit", "run"], said
    assert fakes.calls() == ["prepare"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_goes_on(fakes: ModuleType, number: int, code: int) -> None:
    Path("distill.wait").touch()
    process = start("run(load('r.yaml'))")
    until_begun(fakes, "distill")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    Path("distill.wait").unlink()
    result = made()
    assert statuses(result.steps)["teach"] == "hit"
    assert statuses(result.steps)["distill"] == "resume"


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("{metric: size_mb, max: 3}", 0),
        ("{metric: size_mb, max: 2}", 1),
        ("{metric: ce, baseline: source, max_drop: 1%}", 0),
        ("{metric: ce, baseline: teach, max_drop: 50%}", 0),
        ("{metric: ce, baseline: teach, max_drop: 0.1%}", 1),
        ("{metric: ndcg@10, on: distill, baseline: teach, max_drop: 1%}", 1),
    ],
)
def test_gates_decide_the_exit_code(fakes: ModuleType, gate: str, code: int) -> None:
    result = made(gates=f"gates:\n  - {gate}\n")
    assert len(result.verdicts) == 1
    assert exit_code(result) == code
    told = json.loads(Path("runs/x/metrics.json").read_text())
    assert told["verdicts"][0]["failed"] is bool(code)
    assert told["verdicts"][0]["binding"] is True
    assert told["verdicts"][0]["sentence"] == result.verdicts[0].sentence


def test_a_smoke_run_judges_but_does_not_bind(fakes: ModuleType) -> None:
    gate = "gates:\n  - {metric: ce, baseline: teach, max_drop: 0.1%}\n"
    Path("r.yaml").write_text(RECIPE + gate)
    result = run(read("r.yaml", smoke=True))
    assert [verdict.failed for verdict in result.verdicts] == [True]
    assert exit_code(result) == 0
    assert result.run_dir == Path("runs/x-smoke")
    assert result.notes == [
        "gate ce on export: judged, but not binding in a smoke run, "
        "where models are as good as random"
    ]


POWER_NOTE = (
    "gate ndcg@10 on distill, max_drop 1%: 40 users see a drop of about 6.7 %; a candidate as "
    "good as its baseline would pass with a chance of 10 %"
)


def test_a_gate_that_the_test_set_cannot_see_is_told_before_the_long_steps(
    fakes: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    gate = "gates:\n  - {metric: ndcg@10, on: distill, baseline: teach, max_drop: 1%}\n"
    assert made(gates=gate).notes == [POWER_NOTE]
    assert caplog.messages == [POWER_NOTE]
    begun = fakes.calls()
    with pytest.raises(RecipeError) as caught:
        made("power=stop", "seed=3", gates=gate)
    assert caught.value.what == POWER_NOTE
    assert fakes.calls() == [*begun, "prepare", "sasrec", "baselines"]


@pytest.mark.parametrize(
    "gate",
    [
        "{metric: ndcg@10, on: distill, baseline: teach, max_drop: 20%}",
        "{metric: ndcg@10, baseline: source, max_drop: 0.1%}",
        "{metric: size_mb, max: 3}",
    ],
)
def test_a_gate_that_can_be_seen_needs_no_note(fakes: ModuleType, gate: str) -> None:
    assert made("power=stop", gates=f"gates:\n  - {gate}\n").notes == []


def test_nothing_to_rank(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "USERS", 0)
    with pytest.raises(UndecidedError) as caught:
        made()
    assert caught.value.what == (
        "no user of log.csv has a test target after the split: there is nothing to rank."
    )
    assert fakes.calls() == ["prepare"]


def test_gates_of_which_none_could_be_judged(fakes: ModuleType) -> None:
    Path("r.yaml").write_text(RECIPE + "gates:\n  - {metric: size_mb, max: 3}\n")
    assert exit_code(RunResult(read("r.yaml"), Path())) == 5


def test_the_folder_of_a_run(fakes: ModuleType) -> None:
    result = made()
    folder = Path("runs/x")
    links = {path.name: path.resolve() for path in folder.iterdir() if path.is_symlink()}
    assert links == {
        f"{i:02d}-{step.id}": step.artefact.path for i, step in enumerate(result.steps, start=1)
    }
    assert load(folder / "04-teach").digest == digests(result)["teach"]
    again = read(folder / "recipe.resolved.yaml")
    assert again == result.recipe
    lock = json.loads((folder / "recipe.lock").read_text())
    assert lock["recipe"] == "x"
    assert lock["sources"] == {"prepare": {"log": "a,b,1"}}
    assert set(lock["versions"]) == {"pydantic", "slmc"}
    assert {name: step["key"] for name, step in lock["steps"].items()} == {
        step.id: step.key for step in result.steps
    }
    assert lock["steps"]["distill"]["parts"]["inputs"]["teacher"] == digests(result)["teach"]


def test_links_of_an_earlier_run_go(fakes: ModuleType) -> None:
    made()
    result = made("distill.control=false")
    names = sorted(path.name for path in Path("runs/x").iterdir() if path.is_symlink())
    assert names == [f"{i:02d}-{step.id}" for i, step in enumerate(result.steps, start=1)]


def test_a_folder_of_something_else_is_left_alone(fakes: ModuleType) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    with pytest.raises(UsageError) as caught:
        made(run_dir=Path("mine"))
    assert caught.value.what == "mine holds files that no run has put there."
    with pytest.raises(UsageError) as caught:
        made(run_dir=Path("log.csv"))
    assert caught.value.what == "log.csv cannot be written: File exists."
    assert fakes.calls() == []


@pytest.mark.parametrize("text", ["", "[]", '{"steps": 3}', '{"steps": {"teach": 3}}', "\x00"])
def test_a_lock_that_cannot_be_read_is_written_anew(fakes: ModuleType, text: str) -> None:
    made()
    Path("runs/x/recipe.lock").write_text(text)
    assert not any(step.changed for step in plan(read("r.yaml")))
    made()
    assert len(json.loads(Path("runs/x/recipe.lock").read_text())["steps"]) == len(ORDER)


def test_one_stage_alone_has_the_key_that_a_recipe_gives_it(fakes: ModuleType) -> None:
    result = made()
    artefacts = result.artefacts()
    inputs = {"data": artefacts["prepare"], "teacher": artefacts["teach"]}
    config = result.recipe.step("distill").config
    begun = fakes.calls()
    alone = run_stage("distill", config, inputs, out=Path("student"))
    assert fakes.calls() == begun
    assert alone.digest == artefacts["distill"].digest
    assert load(Path("student"), kind="model").digest == alone.digest
    with pytest.raises(ArtefactError) as caught:
        run_stage("distill", config, inputs, out=Path("student"))
    assert caught.value.what == "student exists already; what is there is kept."
    assert run_stage("distill", config, inputs, out=Path("student"), force=True) == alone
    Path("mine").mkdir()
    with pytest.raises(ArtefactError, match="was not made by slmc"):
        run_stage("distill", config, inputs, out=Path("mine"), force=True)


def test_an_artefact_is_found_by_its_digest(fakes: ModuleType) -> None:
    teacher = made(until="teach").artefacts()["teach"]
    found = store.find(teacher.digest)
    assert found is not None and found.path == teacher.path
    assert store.find("0" * 64) is None
    assert store.find("../objects") is None


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


def test_keys_name_what_differs() -> None:
    config, outside = DistillConfig(dtype="fp32"), Outside()
    key = key_of("distill", config, {"teacher": "a", "data": "b"}, outside)
    other = key_of("distill", config.model_copy(update={"lr": 1.0}), {"data": "b"}, outside)
    assert key.changed(other.parts) == ["config.lr", "inputs.teacher"]
    assert key.changed(json.loads(json.dumps(key.parts))) == []
    assert store.look(key.digest) is None
