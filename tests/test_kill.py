"""kill -9 at random moments, then the same command: the same bits as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slmc.artefact import MANIFEST, load

RECIPE = """
version: 1
name: killed
data: {{source: {log}, history: 10}}
steps:
  - sasrec: {{dim: 16, epochs: 6, rows: 4, checkpoint_s: 0.2}}
  - teach:
      backbone: random://llama?layers=3&hidden=32&heads=4&kv_heads=2&intermediate=64
      epochs: 2
      rows: 2
      checkpoint_s: 0.2
      must_beat: null
  - distill:
      layers: 2
      blocks: 2
      epochs: 2
      rows: 2
      checkpoint_s: 0.2
      losses: {{cosine: 1.0, norm: 0.1, supervise: 1.0, logits: 1.0}}
"""


MOMENTS = (0.1, 0.6)
"""When a run is killed, as shares of the time of a whole one; the next goes on from there."""


def start(arguments: list[str], folder: Path, cache: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"SLMC_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "slmc", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(arguments: list[str], folder: Path, cache: Path) -> float:
    begin = time.monotonic()
    process = start(arguments, folder, cache)
    _, told = process.communicate(timeout=900)
    assert process.returncode == 0, told.decode()
    return time.monotonic() - begin


def digests(run: Path) -> dict[str, str]:
    """Digest of every step but the timings of bench, which are no two times the same."""
    steps = json.loads((run / "metrics.json").read_text())["steps"]
    return {step["id"]: step["digest"] for step in steps if step["stage"] != "bench"}


def check_objects(cache: Path) -> None:
    """Whatever goes by a real name is whole."""
    for path in (cache / "objects").glob("*"):
        if not path.name.startswith("."):
            assert (path / MANIFEST).is_file(), path
            load(path)


def kill_and_go_on(
    arguments: list[str], run: str, folder: Path, times: int, rng: random.Random
) -> None:
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    killed.mkdir()
    seconds = finish(arguments, whole, folder / "cache-whole")
    kills = 0
    while kills < times:
        process = start(arguments, killed, folder / "cache-killed")
        try:
            process.communicate(timeout=rng.uniform(*MOMENTS) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            check_objects(folder / "cache-killed")
        else:  # it came to its end before its moment: the next kills meet a run from the start
            shutil.rmtree(folder / "cache-killed")
    finish(arguments, killed, folder / "cache-killed")
    assert digests(killed / "runs" / run) == digests(whole / "runs" / run)


def test_two_kills_in_a_training_recipe(log_csv: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(log=log_csv))
    kill_and_go_on(["run", str(recipe)], "killed", tmp_path, 2, random.Random(1))


@pytest.mark.slow
def test_ten_kills_in_the_smoke_quick_start(tmp_path: Path) -> None:
    seed = int(time.time())
    print("seed of the moments:", seed)
    arguments = ["run", "quickstart", "--smoke"]
    kill_and_go_on(arguments, "quickstart-smoke", tmp_path, 10, random.Random(seed))
