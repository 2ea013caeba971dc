"""``slmc score --on ray``: the same rows as one process. Ray itself only in the slow test."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from score_inputs import interactions, lists, many, write

from slmc.artefact import Artefact
from slmc.errors import BrokenRunError, DataError, MissingError, UsageError
from slmc.scoring import on_ray, pieces
from slmc.scoring.score import score
from slmc.scoring.settings import Settings, Shard
from slmc.scoring.shipping import Shipped

Score = Callable[..., tuple[pl.DataFrame, dict[str, Any]]]
CLOCK = {"seconds", "output"}


@contextmanager
def two_workers(settings: Settings) -> Iterator[tuple[int, bool]]:
    yield 2, False


def in_this_process(
    todo: list[pieces.Piece], reading: Any, ranking: dict[str, Any], workers: int
) -> Iterator[dict[str, Any]]:
    """The rows that Ray gives, in an order of its own, here by one worker after the other."""
    pytest.importorskip("pyarrow")
    tables = [table for piece in todo for table in on_ray._Task(reading, piece)()]
    random.Random(0).shuffle(tables)
    some = [on_ray.Worker(**ranking) for _ in range(workers)]
    for place, table in enumerate(tables):
        yield some[place % workers](table).to_pylist()[0]


@pytest.fixture
def both(engine: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Score an input in this process and by the code of the workers; the rows are the same."""
    monkeypatch.setattr(on_ray, "_ray", lambda: None)
    monkeypatch.setattr(on_ray, "_cluster", two_workers)
    monkeypatch.setattr(on_ray, "_dataset", in_this_process)
    monkeypatch.setattr(on_ray, "_rows", lambda rows: rows)
    monkeypatch.setattr(pieces, "PIECE_ROWS", 2)

    def scored(name: str, **options: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
        frames, counts = [], []
        for on in ("process", "ray"):
            output = tmp_path / f"{on}.parquet"
            settings = Settings(
                str(tmp_path / name), str(output), threads=1, on=on, part_users=2, force=True,
                **options,
            )  # fmt: skip
            found = vars(score(engine, settings))
            counts.append({key: found[key] for key in found.keys() - CLOCK})
            frames.append(pl.read_parquet(output))
        assert frames[0].drop("scores").equals(frames[1].drop("scores"))  # in this order
        for one, other in zip(*(frame["scores"] for frame in frames), strict=True):
            # Other parts are other batches, in which float32 rounds otherwise.
            np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), atol=1e-4)
        assert counts[0] == counts[1]
        assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]
        return frames[1], counts[1]

    return scored


@pytest.mark.parametrize("name", ["h.parquet", "h.jsonl", "h.csv"])
@pytest.mark.parametrize("options", [{}, {"exclude_seen": True}, {"empty": "skip"}])
def test_a_row_per_user(name: str, options: Any, both: Score, tmp_path: Path) -> None:
    write(lists(), tmp_path / name)
    frame, counts = both(name, k=5, **options)
    assert frame.height == (3 if "empty" in options else 5)
    assert (counts["users"], counts["unknown"]) == (frame.height, 2)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_a_row_per_interaction(name: str, both: Score, tmp_path: Path) -> None:
    write(interactions(), tmp_path / name)
    frame, _ = both(name, k=5)
    assert sorted(frame["user_id"]) == [*"abde"]


def test_allowed_denied_and_a_shard(both: Score, tmp_path: Path) -> None:
    many(tmp_path / "h.parquet", 100)
    for file, ids in {"allow": range(101, 121), "deny": [104]}.items():
        (tmp_path / file).write_text("\n".join(map(str, ids)))
    given = {file: str(tmp_path / file) for file in ("allow", "deny")}
    frame, _ = both("h.parquet", k=3, shard=Shard(1, 3), **given)
    assert 10 < frame.height < 60
    assert set(frame["items"].explode()) <= {*range(101, 121)} - {104}


def test_users_without_a_column_have_the_numbers_of_their_rows(both: Score, tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write(lists().drop("user"), tmp_path / name)
    frame, _ = both("?.parquet", k=2)
    assert frame["row"].to_list() == [*range(1, 11)]


def test_no_row_gives_an_empty_result(both: Score, tmp_path: Path) -> None:
    write(lists().clear(), tmp_path / "h.parquet")
    assert both("h.parquet")[0].height == 0


def test_errors_and_warnings_of_workers(
    both: Score, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ['{"user": "a", "items": [101]}', '{"user": "b", "items"']
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, "slmc"):
        _, counts = both("h.jsonl", malformed="skip")
    (warning,) = set(caplog.messages)
    assert warning.startswith(f"{tmp_path}/h.jsonl, line 2: broken JSON")
    assert counts["malformed"] == 1


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"malformed": "error"}, DataError, "{}/h.jsonl, line 3: broken JSON"),
        ({"malformed": "skip", "unknown": "error"}, DataError,
         "{}/h.jsonl: ids that are not in the vocabulary: 999."),
        ({"malformed": "skip", "empty": "error"}, UsageError, "user 'b' has no known item."),
    ],
)  # fmt: skip
def test_an_error_in_a_worker_is_that_of_one_process(
    options: Any, error: type[Exception], what: str, both: Score, engine: Artefact, tmp_path: Path
) -> None:
    lines = ['{"user": "a", "items": [101]}', '{"user": "b", "items": [999]}', '{"user": "c"']
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    for on in ("process", "ray"):
        settings = Settings(str(tmp_path / "h.jsonl"), str(tmp_path / "top.parquet"), on=on)
        with pytest.raises(error) as caught:
            score(engine, replace(settings, **options))
        assert str(caught.value).startswith(what.format(tmp_path))
        assert not (tmp_path / "top.parquet").exists()


def test_a_job_whose_parts_are_missing_fails_and_goes_on(
    both: Score, engine: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path / "h.parquet", 20)
    settings = Settings(
        str(tmp_path / "h.parquet"), str(tmp_path / "top.parquet"), on="ray", part_users=2
    )
    monkeypatch.setattr(on_ray, "_rows", lambda rows: (row for row in [*rows][:-1]))
    with pytest.raises(BrokenRunError):
        score(engine, settings)
    assert not (tmp_path / "top.parquet").exists()
    monkeypatch.setattr(on_ray, "_rows", lambda rows: rows)
    assert 10 <= score(engine, settings).resumed < 20
    assert pl.read_parquet(tmp_path / "top.parquet")["user"].to_list() == [*range(20)]


@pytest.mark.parametrize(
    ("options", "address", "what"),
    [
        ({"workers": 2}, "", "--workers: this process has threads, no workers."),
        ({"on": "ray", "input": "-"}, "",
         "--input -: on Ray the input is read by processes without this standard input."),
        ({"on": "ray", "output": "-"}, "",
         "--output -: on Ray the parts of the result come in no fixed order."),
        ({"on": "ray"}, "ray://head:10001",
         "RAY_ADDRESS=ray://head:10001 is an address of Ray Client, whose tasks cannot read files "
         "of this machine."),
    ],
)  # fmt: skip
def test_what_ray_cannot_do_is_refused(
    options: Any, address: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError) as caught:
        on_ray.check(replace(Settings("h.parquet", "top.parquet"), **options))
    assert str(caught.value) == what


def test_the_extra_is_named_where_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "import_module", absent)
    with pytest.raises(MissingError) as caught:
        on_ray.check(Settings("h.parquet", "top.parquet", on="ray"))
    assert str(caught.value) == "--on ray: ray is not installed."
    assert caught.value.remedy == "Install it with `pip install 'slmc[ray]'`."


def absent(name: str) -> None:
    raise ImportError(name="ray")


def test_a_model_that_another_machine_does_not_have_is_unpacked_there(
    engine: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    shipped = Shipped.of(engine, with_files=True)
    assert shipped.open().path == engine.path
    there = replace(shipped, path=tmp_path / "elsewhere").open()
    assert (there.path.parent, there.digest) == (tmp_path / "cache/shipped", engine.digest)
    assert replace(shipped, path=tmp_path / "elsewhere", files={}).open().path == there.path


USERS = 60_000
CALL = """
import json, sys
from pathlib import Path
from slmc import artefact
from slmc.scoring.score import score
from slmc.scoring.settings import Settings
model, output, options = artefact.load(Path(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
scored = score(model, Settings("h.parquet", output, exclude_seen=True, part_users=1000, **options))
print(json.dumps(vars(scored)))
"""


@pytest.mark.slow
def test_ray_gives_the_same_rows_although_a_worker_is_killed(
    engine: Artefact, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install --group growth")
    many(tmp_path / "h.parquet", USERS)
    results = []
    for name, options in {"one": {"threads": 1}, "ray": {"on": "ray", "workers": 2}}.items():
        command = [sys.executable, "-c", CALL, engine.path, f"{name}.parquet", json.dumps(options)]
        environment = {key: os.environ[key] for key in os.environ.keys() - {"RAY_ADDRESS"}}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, text=True
        ) as job:
            if name == "ray":
                kill_a_worker(job, tmp_path / ".ray.parquet.partial")
            out, _ = job.communicate()
        assert job.returncode == 0
        results.append(json.loads(out) | {"seconds": 0, "output": ""})
    assert results[0] == results[1]
    assert results[0]["users"] == USERS
    one, ray = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "ray"))
    assert one.equals(ray)


def kill_a_worker(job: "subprocess.Popen[str]", parts: Path) -> None:
    """Kill one of the workers after the first parts have come."""
    import psutil

    while not [*parts.glob("*[0-9].parquet")]:
        assert job.poll() is None, "the job has ended before a worker was killed"
        time.sleep(0.02)
    below = psutil.Process(job.pid).children(recursive=True)
    victim = next(one for one in below if "MapWorker" in "".join(one.cmdline()))
    os.kill(victim.pid, signal.SIGKILL)
    assert not (parts.parent / "ray.parquet").exists()
