"""Crashes, kills and edited artefacts: the same command goes on to the same digests."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from running import ORDER, digests, made, statuses

from slmc import cache
from slmc.artefact import MANIFEST, load
from slmc.errors import BrokenRunError, MissingError, VerdictError
from slmc.pipeline import plan
from slmc.recipe import load as read

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.mark.parametrize(
    ("crash", "what", "advice"),
    [
        ("", "step distill: RuntimeError: tensors do not fit", ""),
        (
            "memory",
            "step distill: MemoryError",
            " with fewer `rows` (or a smaller `batch`), since memory ran out",
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
        "What was computed is kept. Resume with `slmc run r.yaml --set seed=17`"
        f"{advice}; log.jsonl has the full traceback."
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
        f"{edited / 'payload.bin'} has changed since it was sealed. "
        f"It was moved to {aside} and is made again."
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
        f"import sys; sys.path.insert(0, {str(HELPERS)!r}); import fake_stages; "
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
