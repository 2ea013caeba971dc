"""Where an artefact cannot be put: two lines, the exit code, nothing left behind or lost."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slmc import artefact, system
from slmc.artefact import Artefact, copy
from slmc.commands import cli
from slmc.errors import ArtefactError, MissingError, SlmcError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def refuse(number: int) -> Any:
    def act(*arguments: Any, **_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return act


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "there"
    made.mkdir()
    return made


def test_below_a_file(sealed: Artefact, folder: Path) -> None:
    (folder / "file").write_text("mine")
    with pytest.raises(UsageError) as caught:
        copy(sealed, folder / "file/x")
    assert caught.value.what == f"{folder}/file/x cannot be written: {folder}/file is not a folder."
    assert names(folder) == ["file"]


@pytest.mark.parametrize("force", [False, True])
def test_on_a_link_to_nothing(sealed: Artefact, folder: Path, force: bool) -> None:
    (folder / "out").symlink_to("gone")
    with pytest.raises(ArtefactError) as caught:
        copy(sealed, folder / "out", force=force)
    assert caught.value.what == (
        f"{folder}/out is a link to gone, which does not exist; it was not changed."
    )
    assert (folder / "out").is_symlink() and names(folder) == ["out"]


def test_on_a_link_to_an_artefact_the_link_makes_way(sealed: Artefact, folder: Path) -> None:
    first = copy(sealed, folder / "first")
    (folder / "out").symlink_to("first")
    copy(sealed, folder / "out", force=True)
    assert not (folder / "out").is_symlink() and names(folder) == ["first", "out"]
    artefact.load(first.path)


@pytest.mark.parametrize(
    ("number", "kind", "what"),
    [
        (errno.ENOSPC, MissingError, "No space left on device."),
        (errno.EDQUOT, MissingError, "Disk quota exceeded."),
        (errno.EROFS, MissingError, "Read-only file system."),
        (errno.EACCES, UsageError, "Permission denied."),
    ],
)
def test_what_the_system_refuses(
    sealed: Artefact,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[SlmcError],
    what: str,
) -> None:
    monkeypatch.setattr(shutil, "copyfile", refuse(number))
    with pytest.raises(kind) as caught:
        copy(sealed, folder / "new/deep/out")
    assert caught.value.what == f"{folder}/new/deep/out: {what}"
    assert names(folder) == []


def test_with_force_what_was_there_stays(
    sealed: Artefact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(sealed, folder / "out")
    monkeypatch.setattr(shutil, "copyfile", refuse(errno.ENOSPC))
    with pytest.raises(MissingError):
        copy(sealed, folder / "out", force=True)
    artefact.load(folder / "out")
    assert names(folder) == ["out"]


def test_an_interruption_leaves_nothing(
    sealed: Artefact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy(sealed, folder / "out")
    assert names(folder) == []


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    out = tmp_path / "out"
    assert cli.call(["data", "prepare", str(log_csv), "-o", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: {out} cannot be written: no permission to write to the folder {tmp_path}.\n"
        "  Name another --out.\n"
    )
    assert not (tmp_path / "cache").exists()


def test_a_draft_that_breaks_leaves_only_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(RuntimeError), artefact.draft(tmp_path / "out") as work:
            (work.path / "half").write_text("half")
            if resume:
                (work.resume / "state").write_text("step 7")
            raise RuntimeError
        left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
        assert left == ([".out.lock", ".out.partial/resume/state"] if resume else [])


def test_a_full_disk_in_a_process(log_csv: Path, tmp_path: Path) -> None:
    # A limit on the size of files refuses as a full disk does, without a disk of its own.
    code = (
        "import resource, sys; from slmc.commands import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "sys.exit(cli.call(sys.argv[1:]))"
    )
    call = ["data", "prepare", str(log_csv), "-o", str(tmp_path / "out"), "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *call],
        capture_output=True,
        text=True,
        env=os.environ | {"SLMC_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: step prepare: ") and "SLMC_CACHE" in done.stderr
    assert not (tmp_path / "out").exists()
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size]
    assert [p for p in left if p.parent.name != "times"] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/report.html"), 4),
        (
            ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
            4,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), None),
        (ValueError("no"), None),
    ],
)
def test_what_of_all_errors_is_the_systems(error: Exception, code: int | None) -> None:
    told = system.refused(error)
    assert (told and told.exit_code) == code
    around = RuntimeError("step")
    around.__cause__ = error
    told = system.refused(around)
    assert (told and told.exit_code) == code


def test_a_text_is_written_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "a.yaml"
    system.write_whole(file, "one")
    (folder / "link").symlink_to("a.yaml")
    system.write_whole(folder / "link", "two")
    assert file.read_text() == "two" and (folder / "link").is_symlink()
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        system.write_whole(file, "three")
    assert caught.value.filename == str(file)
    assert file.read_text() == "two" and names(folder) == ["a.yaml", "link"]


def test_a_recipe_on_a_full_device(capsys: Any) -> None:
    assert cli.call(["recipe", "cp", "quickstart", "/dev/full", "--force"]) == 4
    assert capsys.readouterr().err == (
        "error: /dev/full: No space left on device.\n"
        "  Free some space, or name a folder on another disk.\n"
    )
