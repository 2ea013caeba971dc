"""Several processes that train one model: the same batches, the same result, one artefact."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from slmc import processes
from slmc.config import TrainConfig
from slmc.data.batches import Rows
from slmc.errors import UsageError
from slmc.model.device import choose
from slmc.training.dataloader import Dataloader
from slmc.training.types import Epochs, TrainSetup, Validation

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port")
CLOSE = 1e-4
"""Gradients are added in another order; a few dozen steps of Adam enlarge the last bits."""
RECIPE = """version: 1
name: together
dtype: fp32
data: {source: log.csv, history: 10}
steps:
  - sasrec: {dim: 16, epochs: 2, rows: 16, warmup: 5, dropout: 0, checkpoint_s: 0}
  - teach:
      backbone: random://llama?layers=2&hidden=32&heads=4&kv_heads=2&intermediate=64
      epochs: 2
      rows: 5
      warmup: 5
      dropout: 0
      checkpoint_s: 0
  - distill:
      layers: 1
      blocks: 1
      losses: {cosine: 1, norm: 0.1, logits: 1}
      epochs: 1
      rows: 5
      dropout: 0
"""
TRAINED = ("02-sasrec", "04-teach", "06-distill")


def loader(rows: int, processes_: int, process: int, targets: list[list[int]]) -> Dataloader:
    """A dataloader of one of several processes over rows with these targets."""
    array = np.array(targets)
    packed = Rows(array + 1, array, np.ones_like(array), np.ones_like(array))
    setup = TrainSetup(
        config=TrainConfig(rows=rows),
        epochs=Epochs(lambda packing: packed),
        validation=Validation(dict, 1),
        name="x",
        placement=choose("cpu", "fp32"),
        num_items=9,
        resume=Path(),
    )
    of = SimpleNamespace(num_processes=processes_, process_index=process)
    return Dataloader(setup, cast(Any, of))


@given(
    targets=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=9),
    rows=st.integers(3, 6),
    count=st.integers(1, 3),
)
def test_parts_of_a_batch_are_the_batch(targets: list[list[int]], rows: int, count: int) -> None:
    """The weighted mean over processes of the mean of a part is the mean of the whole batch."""
    whole = loader(rows, 1, 0, targets)
    parts = [loader(rows, count, process, targets) for process in range(count)]
    assert {part.steps for part in parts} == {whole.steps}
    for step in range(whole.steps):
        batch, shared = whole.batch(0, step), [part.batch(0, step) for part in parts]
        has_rows = [part for part in shared if part.weight]
        assert {int(row) for part in has_rows for row in part.index} <= set(batch.index.tolist())
        real = batch.targets[batch.targets > 0].double()
        if not len(real):
            continue
        means = [
            part.weight * part.targets[part.targets > 0].double().mean().item() for part in has_rows
        ]
        assert sum(means) / count == pytest.approx(real.mean().item())


def test_rows_cannot_be_fewer_than_processes() -> None:
    with pytest.raises(UsageError) as caught:
        loader(1, 2, 0, [[1]])
    assert caught.value.what == "rows: 1 rows cannot be divided among 2 processes."


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processes.SIZE, *processes.RANK, *processes.LOCAL):
        monkeypatch.delenv(name, raising=False)
    assert (processes.count(), processes.rank(), processes.local_rank()) == (1, 0, 0)
    assert processes.is_main() and processes.agreed("x") == "x"


def test_the_numbers_of_mpi_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    assert (processes.count(), processes.rank(), processes.local_rank()) == (4, 3, 1)
    assert not processes.is_main()


def test_a_launcher_that_starts_one_process_only_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with caplog.at_level(logging.WARNING, logger="slmc.processes"):
        processes.check_launcher()
    assert "torchrun --nproc_per_node N" in caplog.text


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"SLMC_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def start(folder: Path, port: int, *command: str) -> "subprocess.Popen[bytes]":
    """Start a command in two processes."""
    return subprocess.Popen(
        [*LAUNCH, str(port), "-m", "slmc", *command],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def folders(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three folders with the log and the recipe, each with a cache of its own."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("one", "two", "killed"))
    for folder in folders:
        (folder / "log.csv").write_bytes(log_csv.read_bytes())
        (folder / "r.yaml").write_text(RECIPE)
    return cast(tuple[Path, Path, Path], folders)


@pytest.fixture(scope="module")
def printed(folders: tuple[Path, Path, Path]) -> bytes:
    """What a run in two processes printed."""
    process = start(folders[1], 29611, "run", "r.yaml", "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    return out


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    folders: tuple[Path, Path, Path], printed: bytes
) -> None:
    one, two, _ = folders
    alone = [sys.executable, "-m", "slmc", "run", "r.yaml"]
    subprocess.run(alone, cwd=one, env=environment(one), check=True, capture_output=True)
    assert json.loads(printed)["run_dir"] == "runs/together"  # printed once
    for step in TRAINED:
        weights = [
            load_file(folder / "runs/together" / step / "model.safetensors")
            for folder in (one, two)
        ]
        for name, tensor in weights[0].items():
            assert (tensor - weights[1][name]).abs().max() < CLOSE if tensor.numel() else True
    left = [entry.name for entry in (two / "cache/objects").iterdir() if entry.name[0] == "."]
    assert left == []


@pytest.mark.slow
@pytest.mark.usefixtures("printed")
def test_killed_processes_resume_with_the_same_bits(folders: tuple[Path, Path, Path]) -> None:
    _, two, killed = folders
    process = start(killed, 29612, "run", "r.yaml")
    while not list((killed / "cache/objects").glob(".*.partial/resume/train.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    launcher = psutil.Process(process.pid)
    for one in [*launcher.children(recursive=True), launcher]:
        one.kill()
    process.communicate()
    again = start(killed, 29613, "run", "r.yaml")
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0 and b"resuming" in err, err.decode()
    for step in TRAINED:
        files = [folder / "runs/together" / step / "model.safetensors" for folder in (two, killed)]
        assert files[0].read_bytes() == files[1].read_bytes()
