"""Fixtures of all tests: a separate cache, and a small chain of artefacts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from slmc import artefact
from slmc.artefact import Artefact

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one core; torch, which is imported later, would start one thread per core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

ROOT = Path(__file__).parent.parent
BACKBONE = "random://llama?layers=3&hidden=32&heads=4&kv_heads=2&intermediate=64"


SHARED = ("tests/report",)
"""Folders whose tests share a run, so that one process has all of them; else each file has one."""
LONGEST = ("tests/report", "tests/test_kill.py", "tests/test_python_page.py")
"""These run first, so that no process is left alone with one at the end."""


def group_of(nodeid: str) -> str:
    """The tests that one process runs: those of a file, or of a folder that shares a run."""
    file = nodeid.partition("::")[0]
    folder = file.rpartition("/")[0]
    return folder if folder in SHARED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests by :func:`group_of`; xdist's own groups do nothing with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first."""
    items.sort(key=lambda item: group_of(item.nodeid) not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SLMC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace each model once, whichever process asks for it."""
    from tracing import traced_once

    base = tmp_path_factory.getbasetemp()
    with traced_once((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"):
        yield


@pytest.fixture(scope="session")
def log_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which an item mostly decides the next one: 80 users, 30 items, 20 rows each."""
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(80):
        item = int(rng.integers(30))
        for time in range(20):
            rows.append(f"u{user},i{item},{1000 * user + time}")
            item = (item * 7 + 3) % 30 if rng.random() < 0.8 else int(rng.integers(30))
    file = tmp_path_factory.mktemp("log") / "log.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="session")
def dataset(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    from slmc.data.config import PrepareConfig
    from slmc.data.prepare import prepare

    config = PrepareConfig(source=str(log_csv), history=10)
    return prepare(config, {}, tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="session")
def sasrec(dataset: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    from slmc.training.config import SasrecConfig
    from slmc.training.pretrain import sasrec as stage

    config = SasrecConfig(dim=16, epochs=8, rows=16, warmup=5, dtype="fp32")
    return stage(config, {"data": dataset}, tmp_path_factory.mktemp("sasrec") / "sasrec")


@pytest.fixture(scope="session")
def baselines(
    dataset: Artefact, sasrec: Artefact, tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    from slmc.evaluation.baselines import baselines as stage
    from slmc.evaluation.config import BaselinesConfig

    inputs = {"data": dataset, "sasrec": sasrec}
    return stage(BaselinesConfig(), inputs, tmp_path_factory.mktemp("baselines") / "baselines")


@pytest.fixture(scope="session")
def teacher(
    dataset: Artefact,
    sasrec: Artefact,
    baselines: Artefact,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artefact:
    from slmc.distill.config import MustBeat, TeachConfig
    from slmc.distill.teach import teach

    config = TeachConfig(
        backbone=BACKBONE,
        epochs=4,
        lr=3e-3,
        rows=8,
        warmup=5,
        dtype="fp32",
        must_beat=MustBeat(otherwise="warn"),
    )
    inputs = {"data": dataset, "sasrec": sasrec, "baselines": baselines}
    return teach(config, inputs, tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="session")
def student(
    dataset: Artefact, teacher: Artefact, tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    from slmc.distill.config import DistillConfig, Losses
    from slmc.distill.distill import distill

    config = DistillConfig(
        layers=2,
        blocks=2,
        epochs=2,
        lr=3e-3,
        rows=8,
        warmup=5,
        dtype="fp32",
        losses=Losses(cosine=1.0, norm=0.1, supervise=1.0, logits=1.0),
    )
    inputs = {"data": dataset, "teacher": teacher}
    return distill(config, inputs, tmp_path_factory.mktemp("student") / "student")


@pytest.fixture
def sealed(tmp_path: Path) -> artefact.Artefact:
    """A small artefact of one file."""
    from slmc.config import Seeded

    with artefact.draft(tmp_path / "sealed") as work:
        (work.path / "payload.txt").write_text("payload")
        return work.seal(kind="report", stage="test", config=Seeded(), inputs={})


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the tracked files only, so that it contains no other files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built
