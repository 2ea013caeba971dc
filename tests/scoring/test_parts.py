"""Shards, parts, and jobs that go on after an interruption."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from score_inputs import many, write

from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.scoring import grouping
from slmc.scoring.batches import Batch, cut
from slmc.scoring.score import score
from slmc.scoring.settings import Settings, Shard, hashes

Run = Callable[..., pl.DataFrame]


@pytest.mark.parametrize("name", ["h.parquet", "log.csv"])
def test_shards_together_are_the_whole(name: str, run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = pl.DataFrame(
        {"user": range(200), "items": [rng.integers(101, 141, 5).tolist() for _ in range(200)]}
    )
    if name == "log.csv":
        many = many.explode("items").rename({"items": "item"})
    write(many, tmp_path / name)
    whole = run(name, k=3)
    shards = [run(name, k=3, shard=Shard(number, 3)) for number in (1, 2, 3)]
    assert all(20 < one.height < 120 for one in shards)
    together = pl.concat(shards).sort("user")
    whole = whole.sort("user")
    assert together.drop("scores").equals(whole.drop("scores"))
    scores = (np.array(one["scores"].to_list()) for one in (together, whole))
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_the_hash_of_a_user_never_changes() -> None:
    assert hashes(pl.Series(["", "u1", "Ü"])).tolist() == [0, 1112514422, 1488406813]
    assert hashes(pl.Series([7])).tolist() == hashes(pl.Series(["7"])).tolist()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Shard.parse(text)
    assert str(caught.value) == f"--shard: {text!r} is not the number of a shard."


def test_parts_do_not_depend_on_how_the_input_is_read() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 50)
    lengths[20] = 40
    flat = rng.integers(0, 9, lengths.sum()).astype(np.int32)
    users = pl.Series(range(50))

    def batches(size: int) -> Any:
        ends = np.cumsum(lengths)
        for start in range(0, 50, size):
            end = min(50, start + size)
            first = ends[start] - lengths[start]
            yield Batch(users[start:end], flat[first : ends[end - 1]], lengths[start:end], end)

    def parts(size: int) -> list[tuple[list[int], list[int]]]:
        return [(one.users.to_list(), one.rows.tolist()) for one in cut(batches(size), 7, 30)]

    whole = parts(50)
    assert [user for one, _ in whole for user in one] == [*range(50)]
    assert [row for _, rows in whole for row in rows] == flat.tolist()
    assert all(len(one) <= 7 and (len(rows) <= 30 or len(one) == 1) for one, rows in whole)
    assert all(parts(size) == whole for size in (1, 3, 7, 8))


def test_a_failed_job_goes_on_and_another_one_begins_anew(
    engine: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    many(tmp_path / "h.parquet", 100)
    settings = Settings(
        str(tmp_path / "h.parquet"), str(tmp_path / "top.parquet"), k=3, part_users=10
    )
    whole = replace(settings, output=str(tmp_path / "whole.parquet"))
    score(engine, whole)
    from slmc.scoring.parts import Parts

    add = Parts.add

    def failing(parts: Parts, *arguments: Any) -> None:
        if parts.done == 4:
            raise KeyboardInterrupt
        add(parts, *arguments)

    monkeypatch.setattr(Parts, "add", failing)
    with pytest.raises(KeyboardInterrupt):
        score(engine, settings)
    assert not (tmp_path / "top.parquet").exists()
    monkeypatch.setattr(Parts, "add", add)
    # A file that was not written completely before the kill counts for nothing.
    (tmp_path / ".top.parquet.partial/000004.parquet").write_text("half")
    other = score(engine, replace(settings, k=2, output=str(tmp_path / "two.parquet")))
    assert other.resumed == 0
    with caplog.at_level(logging.INFO, "slmc"):
        done = score(engine, settings)
    assert "score: resuming after 40 users" in caplog.messages
    assert (done.resumed, done.users) == (40, 100)
    assert (tmp_path / "top.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("form", ["lists", "interactions"])
def test_kill_and_go_on(
    form: str, engine: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 after the first parts, then the same command: the same bytes as in one go."""
    many(tmp_path / "h.parquet", 3000)
    if form == "interactions":  # too many for memory: split by user on disk
        rows = pl.read_parquet(tmp_path / "h.parquet").explode("items").rename({"items": "item"})
        rows.sort("item").write_parquet(tmp_path / "h.parquet")
        monkeypatch.setattr(grouping, "IN_MEMORY", 500)
    code = (
        "import functools, sys, time\n"
        "from slmc.commands import cli\n"
        "from slmc.scoring import grouping, settings\n"
        "from slmc.scoring.parts import Parts\n"
        "settings.Settings = functools.partial(settings.Settings, part_users=100)\n"
        "grouping.IN_MEMORY = 500\n"
        "add = Parts.add\n"
        "Parts.add = lambda *a: (add(*a), time.sleep(float(sys.argv[1])))\n"
        "sys.exit(cli.call(sys.argv[2:]))"
    )
    top = tmp_path / "top.parquet"
    arguments = ["score", str(engine.path), "-i", str(tmp_path / "h.parquet"), "-o", str(top)]

    def start(pause: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", code, pause, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    process = start("0.1")
    partial = tmp_path / ".top.parquet.partial"
    end = time.monotonic() + 120
    while not (partial / "000003.json").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not top.exists()
    process = start("0")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log.decode()
    assert b"resuming after " in log
    answer = pl.read_parquet(top)
    assert sorted(answer["user"].to_list()) == [*range(3000)]  # none twice, none lost
    if form == "lists":
        assert answer["user"].is_sorted()
    whole = tmp_path / "whole.parquet"
    score(engine, Settings(str(tmp_path / "h.parquet"), str(whole), part_users=100))
    assert whole.read_bytes() == top.read_bytes()
    names = ["h.parquet", "top.parquet", "whole.parquet"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
