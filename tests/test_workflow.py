"""The workflow for CI: it works in the repository that it is copied to."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github/workflows/compression.yml"
OURS = "hashFiles('slmc/stages.py') != ''"
"""The condition of a step that is for the repository of slmc alone."""


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]["compress"]
    return found


def test_commands_hold_no_expressions(job: dict[str, Any]) -> None:
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert len(commands) >= 4
    assert not [command for command in commands if "${{" in command]


def test_every_job_of_every_run_has_a_cache_key_of_its_own(job: dict[str, Any]) -> None:
    caches = {
        step["uses"].partition("@")[0]: step
        for step in job["steps"]
        if step.get("uses", "").startswith("actions/cache")
    }
    # One step that both restores and saves would not save when a gate fails.
    assert set(caches) == {"actions/cache/restore", "actions/cache/save"}
    restored, saved = (step["with"] for step in caches.values())
    assert restored["key"] == saved["key"] and restored["path"] == saved["path"]
    for part in ("matrix.form", "github.run_id", "github.run_attempt"):
        assert f"${{{{ {part} }}}}" in saved["key"]
    assert saved["key"].startswith(restored["restore-keys"])
    assert caches["actions/cache/save"]["if"] == "always()"


def test_reports_of_two_jobs_have_two_names(job: dict[str, Any]) -> None:
    names = [step["with"]["name"] for step in job["steps"] if "upload-artifact" in str(step)]
    assert names == ["report-${{ matrix.form }}"]


def interpreter(folder: Path) -> Path:
    """A Python that has all that this one has, but slmc; what it installs stays in its folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    links = folder / "links"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "slmc" not in entry.name.lower():
            (links / entry.name).symlink_to(entry)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"{links}\n")
    return folder / "bin"


@pytest.mark.slow
def test_its_steps_run_in_the_repository_that_it_is_copied_to(
    job: dict[str, Any], wheel: Path, log_csv: Path, tmp_path: Path
) -> None:
    """As the header says: the file, the wheel and a recipe, in a folder that has nothing else."""
    folder = tmp_path / "repository"
    for source, name in (
        (WORKFLOW, ".github/workflows/compression.yml"),
        (wheel, f"wheels/{wheel.name}"),
        (ROOT / "recipes/custom.yaml", "mine.yaml"),
        (log_csv, "log.csv"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    environment = os.environ | {
        "PATH": f"{interpreter(tmp_path / 'python')}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "RECIPE": "mine.yaml",
        "OPTIONS": "--smoke",
        "SLMC_CACHE": str(folder / ".slmc-cache"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("PYTHONPATH", None)
    for step in job["steps"]:
        if "run" in step and step.get("if") != OURS:
            subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=folder, env=environment, check=True,
            )  # fmt: skip
    assert (tmp_path / "summary.md").read_text().startswith("## custom: passed")
    (report,) = (step["with"]["path"].split() for step in job["steps"] if "upload" in str(step))
    assert not [pattern for pattern in report if not list(folder.glob(pattern))]
