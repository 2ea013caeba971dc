"""The cache: which runs use it, what may go, and what it holds."""

import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from running import made

from slmc import cache
from slmc.artefact import Artefact, load
from slmc.commands import cli
from slmc.errors import UsageError
from slmc.pipeline import inventory
from slmc.pipeline.rundir import RunDir

Captured = pytest.CaptureFixture[str]


def keys(found: list[Artefact]) -> set[str]:
    return {one.path.name for one in found}


@pytest.fixture
def projects(fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two projects of one cache that share the steps up to the teacher; here is neither."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, width in zip(folders, (2, 3), strict=True):
        folder.mkdir()
        monkeypatch.chdir(folder)
        shutil.copy(tmp_path / "log.csv", folder)
        made(f"distill.layers={width}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return folders


def test_runs_of_other_folders_are_kept(projects: list[Path], capsys: Captured) -> None:
    before = keys(inventory.artefacts())
    assert cli.call(["cache", "gc", "--yes"]) == 0
    assert keys(inventory.artefacts()) == before
    assert capsys.readouterr().out == (
        f"0 artefacts, 0.0 MB: removed; {len(before)} kept for 2 runs\n"
    )


def test_a_run_whose_folder_is_gone_is_forgotten(projects: list[Path], capsys: Captured) -> None:
    one, two = (folder / "runs/x" for folder in projects)
    shutil.rmtree(one)
    found = inventory.garbage([])
    assert (found.runs, found.gone) == ([two], [one])
    assert {a.manifest.stage for a in found.artefacts} >= {"distill", "export"}
    freed = sum(inventory.size(a.path) for a in found.artefacts)
    assert freed > 0
    assert cli.call(["cache", "gc", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == freed
    assert cli.call(["cache", "gc", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == freed and said["removed"] == [a.path.name for a in found.artefacts]
    assert said["gone"] == [str(one)]
    assert inventory.registered() == [two]
    for link in two.iterdir():
        if link.is_symlink():
            load(link)


def test_what_a_run_has_not_reached_again_is_kept(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(projects[0])
    made("distill.layers=2", until="prepare")
    assert not inventory.garbage([]).artefacts


def test_without_a_terminal_nothing_goes_unless_yes_is_said(
    projects: list[Path], capsys: Captured
) -> None:
    shutil.rmtree(projects[0] / "runs")
    before = keys(inventory.artefacts())
    assert cli.call(["cache", "gc"]) == 2
    out, err = capsys.readouterr()
    assert err == (
        "error: nothing was removed: there is no terminal to ask for confirmation.\n"
        "  Pass --yes to remove what is listed, or --dry-run only to list it.\n"
    )
    assert "distill" in out and "MB" in out
    assert (
        f"{projects[0]}/runs/x no longer exists: the artefacts of that run are not kept. If it was "
        "moved, name its new place with --runs.\n"
    ) in out
    assert cli.call(["cache", "gc", "--dry-run"]) == 0
    assert "would be removed" in capsys.readouterr().out
    assert keys(inventory.artefacts()) == before
    assert len(inventory.registered()) == 2


def test_at_a_terminal_it_asks(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shutil.rmtree(projects[0] / "runs")
    before, going = keys(inventory.artefacts()), keys(inventory.garbage([]).artefacts)
    for answers, left in ((["n\n", "\n"], before), (["y\n"], before - going)):
        for answer in answers:
            terminal = io.StringIO(answer)
            monkeypatch.setattr(terminal, "isatty", lambda: True)
            monkeypatch.setattr("sys.stdin", terminal)
            assert cli.call(["cache", "gc"]) == 0
            assert ("nothing was removed" in capsys.readouterr().out) == (left == before)
            assert keys(inventory.artefacts()) == left


def test_runs_that_were_not_entered_are_kept_where_they_are_named(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shutil.rmtree(cache.runs())
    monkeypatch.chdir(projects[0])
    assert len(inventory.garbage([]).artefacts) == len(inventory.artefacts())
    elsewhere = str(projects[1] / "runs")
    assert cli.call(["cache", "gc", "--yes", "--runs", "runs", "--runs", elsewhere]) == 0
    assert "0 artefacts" in capsys.readouterr().out
    assert inventory.registered() == [folder / "runs/x" for folder in projects]
    assert cli.call(["cache", "gc", "--yes", "--runs", "run"]) == 2
    assert capsys.readouterr().err == (
        "error: --runs run: this folder does not exist; nothing was removed.\n"
        "  Name a folder that contains folders of runs.\n"
    )


def test_a_folder_that_cannot_be_read_is_named(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: RunDir) -> None:
        raise PermissionError(13, "Permission denied", str(folder.path))

    monkeypatch.setattr(RunDir, "keys", refuse)
    with pytest.raises(UsageError) as caught:
        inventory.garbage([])
    assert caught.value.what == (
        f"{projects[0]}/runs/x, the folder of a run, cannot be read: Permission denied; its "
        "artefacts are not known, so nothing was removed."
    )


def test_what_is_linked_to_after_the_listing_is_kept(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(projects[0] / "runs")
    listed = inventory.garbage([])
    monkeypatch.chdir(projects[0])
    made("distill.layers=2")
    before = keys(inventory.artefacts())
    inventory.remove(listed)
    assert keys(inventory.artefacts()) == before
    assert not inventory.garbage([]).gone and len(inventory.registered()) == 2


def test_states_go_with_their_teacher(projects: list[Path]) -> None:
    teacher = next(a for a in inventory.artefacts() if a.manifest.stage == "teach")
    for name, noted in {"a": teacher.digest, "b": "0" * 64, "c": None}.items():
        folder = cache.root() / "states" / name
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"unit": 1.0, "teacher": noted}))
    found = inventory.garbage([])
    assert [path.name for path in found.states] == ["b"]
    inventory.remove(found)
    assert sorted(p.name for p in (cache.root() / "states").iterdir()) == ["a", "c"]


def test_ls_counts_all_of_the_cache(projects: list[Path], capsys: Captured) -> None:
    for name, count in {"states/x/blocks.npy": 7000, "downloads/y/log.csv": 5000,
                        "backbones/z/model.safetensors": 3000, "plans/p/model.plan": 2000,
                        "texts/t.safetensors": 4000,
                        f"objects/.{'0' * 64}.partial/files/w": 1000}.items():  # fmt: skip
        file = cache.root() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(count))
    assert cli.call(["cache", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    others = {part["what"]: (part["count"], part["bytes"]) for part in listed["others"]}
    assert others.pop("other files")[1] > 0
    assert others == {
        "teacher states": (1, 7000),
        "sources": (1, 5000),
        "backbones": (1, 3000),
        "plans": (1, 2000),
        "text vectors": (1, 4000),
        "unfinished steps": (1, 1000),
    }
    files = [f for f in cache.root().rglob("*") if f.is_file() and not f.is_symlink()]
    assert listed["bytes"] == sum(f.stat().st_size for f in files)
    parts = [*listed["artefacts"], *listed["others"]]
    assert listed["bytes"] == sum(part["bytes"] for part in parts)
    assert cli.call(["cache", "ls"]) == 0
    out = capsys.readouterr().out
    for line in ("teacher states", "sources", "backbones", "text vectors", "unfinished steps"):
        assert f"{line}: 1, 0.0 MB\n" in out


def test_a_link_into_nothing_names_the_command_that_makes_it_again(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(projects[0])
    link = Path("runs/x/04-teach")
    target = link.readlink()
    shutil.rmtree(cache.root())
    said = f"error: {link} links to {target}, which no longer exists.\n"
    command = "slmc run r.yaml --set distill.layers=2 --until teach"
    for asked in ("show", "distill", "export"):
        assert cli.call([asked, str(link)]) == 2
        assert capsys.readouterr().err == said + f"  Make it again with `{command}`.\n"
    monkeypatch.chdir("/")
    assert cli.call(["show", str(projects[0] / link)]) == 2
    assert f"  Make it again with `{command}` in {projects[0]}.\n" in capsys.readouterr().err
    (projects[0] / "runs/x/recipe.lock").unlink()
    assert cli.call(["show", str(projects[0] / link)]) == 2
    assert "  Run its recipe again.\n" in capsys.readouterr().err


def test_the_command_names_the_folder_of_the_run(fakes: ModuleType, capsys: Captured) -> None:
    made(run_dir=Path("a run"))
    shutil.rmtree(cache.root())
    assert cli.call(["show", "a run/04-teach"]) == 2
    assert "`slmc run r.yaml -o 'a run' --until teach`" in capsys.readouterr().err


def test_a_run_that_was_moved_is_kept_once_it_was_used(
    projects: list[Path], tmp_path: Path, capsys: Captured
) -> None:
    before = keys(inventory.artefacts())
    by_run, by_link = tmp_path / "elsewhere/a run", tmp_path / "elsewhere/another"
    by_run.parent.mkdir()
    for folder, new in zip(projects, (by_run, by_link), strict=True):
        (folder / "runs/x").rename(new)
    assert cli.call(["show", str(by_run), str(by_link / "04-teach")]) == 0
    assert inventory.registered() == sorted(
        [by_run, by_link, *(folder / "runs/x" for folder in projects)]
    )
    capsys.readouterr()
    assert cli.call(["cache", "gc", "--yes"]) == 0
    assert keys(inventory.artefacts()) == before
    assert inventory.registered() == [by_run, by_link]


def test_the_use_of_a_link_outside_of_a_run_registers_nothing(
    projects: list[Path], tmp_path: Path
) -> None:
    before = inventory.registered()
    (tmp_path / "mine").mkdir()
    link = tmp_path / "mine/teacher"
    link.symlink_to((projects[0] / "runs/x/04-teach").resolve())
    assert cli.call(["show", str(link), str(tmp_path / "mine")]) == 2
    assert cli.call(["show", str(link)]) == 0
    assert inventory.registered() == before


def test_links_into_nothing_are_listed_with_their_commands(
    projects: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    one, two = (folder / "runs/x" for folder in projects)
    shutil.rmtree((one / "04-teach").resolve())
    (two / "recipe.lock").unlink()
    (one / "mine").symlink_to("nowhere")
    command = "slmc run r.yaml --set distill.layers=2 --until teach"
    lines = (
        f"{one}/04-teach: the artefact is gone. Make it again with `{command}` in {projects[0]}.\n"
        f"{two}/04-teach: the artefact is gone. Run its recipe again.\n"
    )
    for asked in (["cache", "ls"], ["cache", "gc", "--yes"], ["cache", "gc", "--dry-run"]):
        assert cli.call(asked) == 0
        assert capsys.readouterr().out.endswith(lines)
        assert cli.call([*asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["dangling"] == [
            {"link": f"{one}/04-teach", "again": f"`{command}` in {projects[0]}"},
            {"link": f"{two}/04-teach", "again": None},
        ]
    monkeypatch.chdir(projects[0])
    made("distill.layers=2", until="teach")
    assert cli.call(["cache", "ls"]) == 0
    assert f"{one}/04-teach" not in capsys.readouterr().out
