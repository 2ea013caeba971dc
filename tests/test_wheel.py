"""The built wheel: every tracked file of the package under ``slmc/``, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("slmc", "compress", "distill", "export", "recipes")


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    files = {name for name in listed if not (ROOT / name).is_symlink() and (ROOT / name).exists()}
    return {name if name.startswith("slmc/") else f"slmc/{name}" for name in files}


def test_it_holds_every_tracked_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    payload = {name for name in names if ".dist-info/" not in name}
    assert payload == tracked()


def test_it_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    listed = subprocess.run(
        [sys.executable, "-P", "-c", "from slmc.commands.cli import main; main()", "recipe", "ls"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "quickstart" in listed.stdout and "slmrec-paper" in listed.stdout
