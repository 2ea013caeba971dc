"""``slmc score``: formats, policies, shards, resume. The engine is checked in tests/serving."""

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest

from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.errors import DataError, UsageError
from slmc.scoring import grouping
from slmc.scoring.score import cut, score
from slmc.scoring.settings import Settings, Shard, hashes
from slmc.scoring.source import Batch
from slmc.serving.frames import Columns
from slmc.serving.opening import load

HISTORIES: dict[str, list[int]] = {
    "a": [101, 102],
    "b": [140, 139, 138, 137, 136, 135, 134, 133],
    "c": [],
    "d": [105, 999],
    "e": [999],
}
"""Longer than the model reads, empty, with an unknown item, and with nothing else."""
Run = Callable[..., pl.DataFrame]


@pytest.fixture
def run(engine: Artefact, tmp_path: Path) -> Run:
    def scored(name: str, output: str = "top.parquet", **options: Any) -> pl.DataFrame:
        settings = Settings(str(tmp_path / name), str(tmp_path / output), force=True, **options)
        score(engine, replace(settings, threads=2))
        return pl.read_parquet(tmp_path / output)

    return scored


@pytest.fixture
def expected(engine: Artefact) -> dict[str, list[int]]:
    """User -> the five best items, as one history after the other gives them."""
    served = load(engine)
    lists = {user: served.recommend(ids, 5, False).ids for user, ids in HISTORIES.items()}
    return {user: [int(id) for id in ids] for user, ids in lists.items()}


def lists(users: list[Any] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"user": users or [*HISTORIES], "items": [*HISTORIES.values()]})


def interactions() -> pl.DataFrame:
    """Without users c (no row); the newest rows first, users alternating."""
    rows = [
        (user, item, 1_700_000_000 + place)
        for user, items in HISTORIES.items()
        for place, item in enumerate(items)
    ]
    names = ["user_id", "item_id", "timestamp"]
    return pl.DataFrame(rows, schema=names, orient="row").sort("timestamp", descending=True)


def as_lists(answer: pl.DataFrame) -> dict[str, list[int]]:
    user = answer.columns[0]
    found = zip(answer[user].to_list(), answer["items"].to_list(), strict=True)
    return {str(one): [int(item) for item in items] for one, items in found}


def write(frame: pl.DataFrame, file: Path) -> None:
    texts = frame.with_columns(pl.col(pl.List).cast(pl.List(pl.String)).list.join(" "))
    if file.name.endswith(".jsonl.gz"):
        file.write_bytes(gzip.compress(frame.write_ndjson().encode()))
    elif file.suffix == ".jsonl":
        frame.write_ndjson(file)
    elif file.suffix == ".csv":
        texts.write_csv(file)
    elif file.suffix == ".tsv":
        texts.write_csv(file, separator="\t")
    elif file.suffix == ".txt":
        lines = (f"{user} {items}".strip() for user, items in texts.iter_rows())
        file.write_text("\n".join(lines) + "\n")
    else:
        frame.write_parquet(file)


@pytest.mark.parametrize("name", ["h.parquet", "h.jsonl", "h.jsonl.gz", "h.csv", "h.tsv", "h.txt"])
def test_a_row_per_user(
    name: str, run: Run, expected: dict[str, list[int]], tmp_path: Path
) -> None:
    write(lists(), tmp_path / name)
    answer = run(name, k=5)
    assert as_lists(answer) == expected
    assert answer[answer.columns[0]].to_list() == [*"abcde"]  # in the order of the input
    assert answer["by"].to_list() == ["model", "model", "popular", "model", "popular"]
    whole = name in ("h.parquet", "h.jsonl", "h.jsonl.gz")
    assert answer.schema["items"] == pl.List(pl.Int64 if whole else pl.String)


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "log.csv", "log.tsv"])
@pytest.mark.parametrize("in_memory", [1 << 22, 2])
def test_a_row_per_interaction(
    name: str,
    in_memory: int,
    run: Run,
    expected: dict[str, list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "IN_MEMORY", in_memory)
    write(interactions(), tmp_path / name)
    answer = run(name, k=5)
    assert as_lists(answer) == {user: expected[user] for user in "abde"}
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_times_of_every_kind_order_the_rows(run: Run, tmp_path: Path, engine: Artefact) -> None:
    best = load(engine).recommend([101, 102], 3, False).ids
    for times in (["2024-01-02", "2024-01-01"], ["1.5", "1.25"], ["10", "9"]):
        frame = pl.DataFrame({"user": ["a"] * 2, "item": [102, 101], "time": times})
        frame.write_csv(tmp_path / "log.csv")
        assert as_lists(run("log.csv", k=3)) == {"a": best}


def test_users_and_items_keep_their_types(run: Run, tmp_path: Path) -> None:
    for name in ("h.parquet", "h.jsonl"):
        write(lists([1, 2, 3, 4, 2**60]), tmp_path / name)
        answer = run(name, k=2)
        assert answer.schema["user"] == pl.Int64
        assert answer["user"].to_list() == [1, 2, 3, 4, 2**60]


def test_lists_in_text_and_json_arrays(run: Run, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text('user,items\na,101;102\nd,"105; 999"\n')
    answer = run("h.csv", k=5, items_separator=";")
    assert as_lists(answer) == {user: expected[user] for user in "ad"}
    (tmp_path / "h.csv").write_text('user,items\na,"[101, ""102""]"\nc,[]\nd,105 999\n')
    assert as_lists(run("h.csv", k=5)) == {user: expected[user] for user in "acd"}


def test_json_numbers_are_exact(run: Run, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"user": "a", "items": [101.0, 1.02e2]}\n')
    assert as_lists(run("h.jsonl", k=5)) == {"a": expected["a"]}


def test_decimals_are_ids(run: Run, expected: Any, tmp_path: Path) -> None:
    items = pl.Series([101, 102], dtype=pl.Decimal(20, 2))
    pl.DataFrame({"user": ["a", "a"], "item": items}).write_parquet(tmp_path / "log.parquet")
    assert as_lists(run("log.parquet", k=5)) == {"a": expected["a"]}


def test_a_table_without_a_header(run: Run, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("102,a,9\n101,a,8\n")
    columns = Columns(user="2", item="1", time="3")
    assert as_lists(run("log.csv", k=5, header=False, columns=columns)) == {"a": expected["a"]}


def test_csv_has_a_row_per_item_and_jsonl_one_per_user(
    engine: Artefact, expected: Any, tmp_path: Path
) -> None:
    write(lists(), tmp_path / "h.jsonl")
    for name in ("top.csv", "top.jsonl"):
        score(engine, Settings(str(tmp_path / "h.jsonl"), str(tmp_path / name), k=5))
    table = pl.read_csv(tmp_path / "top.csv")
    assert table.columns == ["user", "rank", "item", "score", "by"]
    assert table["rank"].to_list() == [1, 2, 3, 4, 5] * 5
    found = table.group_by("user", maintain_order=True).agg("item")
    assert dict(found.iter_rows()) == expected
    lines = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
    assert {one["user"]: one["items"] for one in lines} == expected
    assert lines[2] | {"items": 0} == {
        "user": "c", "items": 0, "scores": [9.0, 5.0, 5.0, 5.0, 5.0], "by": "popular",
    }  # fmt: skip


def test_seen_allowed_and_denied_items(run: Run, engine: Artefact, tmp_path: Path) -> None:
    write(lists(), tmp_path / "h.parquet")
    (tmp_path / "allow.txt").write_text("101\n102\n\n103\n104\n140\n")
    pl.DataFrame({"item_id": [104], "why": ["recalled"]}).write_parquet(tmp_path / "deny.parquet")
    answer = run(
        "h.parquet", k=3, exclude_seen=True, allow=str(tmp_path / "allow.txt"),
        deny=str(tmp_path / "deny.parquet"),
    )  # fmt: skip
    served, allowed = load(engine), [101, 102, 103, 140]
    assert as_lists(answer) == {
        user: [int(id) for id in served.recommend(ids, 3, True, allowed).ids]
        for user, ids in HISTORIES.items()
    }


def test_users_without_a_history(run: Run, tmp_path: Path) -> None:
    write(lists(), tmp_path / "h.parquet")
    assert run("h.parquet", k=2, empty="skip")["user"].to_list() == ["a", "b", "d"]
    with pytest.raises(UsageError) as caught:
        run("h.parquet", output="never.parquet", k=2, empty="error")
    assert str(caught.value) == "user 'c' has no known item, nor have 1 others."
    assert not (tmp_path / "never.parquet").exists()


def test_unknown_items(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(lists(), tmp_path / "h.parquet")
    with caplog.at_level(logging.WARNING, "slmc"):
        run("h.parquet")
    assert caplog.messages == [
        "2 items of the histories are not in the vocabulary and were skipped, such as 999"
    ]
    for name in ("h.parquet", "log.csv"):
        write(interactions(), tmp_path / "log.csv")
        with pytest.raises(DataError) as caught:
            run(name, unknown="error")
        assert str(caught.value) == (f"{tmp_path / name}: ids that are not in the vocabulary: 999.")


MALFORMED = {
    "lists.jsonl": (
        '{"user": "a", "items": [101, 102]}\n{"user": "x", "items": 7}\n{"user": "y", "items"\n'
        '{"items": [101]}\n{"user": "z", "items": [101, {"a": 1}]}\n',
        ["line 2: items is not a list", "line 3: broken JSON", "line 4: user is empty",
         "line 5: items is an object"],
    ),
    "log.csv": (
        "user,item,time\na,101,1\nx,102\na,102,2\n,103,4\ny,,4\nz,104,noon\n",
        ["line 3: ", "line 5: user is empty", "line 6: item is empty",
         "line 7: time is noon, which is no time"],
    ),
}  # fmt: skip
"""Name -> content, of which user a is whole; what is wrong."""


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_rows(
    name: str, run: Run, expected: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, reasons = MALFORMED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        run(name, k=5)
    assert str(caught.value).startswith(f"{tmp_path / name}, {reasons[0]}")
    assert caught.value.remedy == "Fix the row, or pass --malformed skip."
    with caplog.at_level(logging.WARNING, "slmc"):
        assert as_lists(run(name, k=5, malformed="skip")) == {"a": expected["a"]}
    assert len(caplog.messages) == len(reasons)
    for message, reason in zip(sorted(caplog.messages), sorted(reasons), strict=True):
        assert message.startswith(f"{tmp_path / name}, {reason}")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("x,y\n1,2\n", "no column of items is known by its name; it has 'x', 'y'."),
        ("user,y\na,b\n", "no column of items is known by its name; it has 'user', 'y'."),
        ("", "h.csv is empty."),
    ],
)
def test_input_that_cannot_be_read(content: str, what: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        run("h.csv")
    assert str(caught.value).endswith(what)


def test_no_row_gives_an_empty_result(run: Run, tmp_path: Path) -> None:
    lists().clear().write_parquet(tmp_path / "h.parquet")
    answer = run("h.parquet")
    assert (answer.height, answer.columns) == (0, ["user", "items", "scores", "by"])
    (tmp_path / "h.csv").write_text("user,item\n")
    assert run("h.csv").height == 0


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


def test_an_existing_output_stays(run: Run, engine: Artefact, tmp_path: Path) -> None:
    write(lists(), tmp_path / "h.parquet")
    file = tmp_path / "top.parquet"
    file.write_text("mine")
    settings = Settings(str(tmp_path / "h.parquet"), str(file))
    with pytest.raises(UsageError) as caught:
        score(engine, settings)
    assert str(caught.value) == f"{file} exists already; it was not changed."
    assert file.read_text() == "mine"
    score(engine, replace(settings, force=True))
    assert pl.read_parquet(file).height == 5


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("top.xlsx", "--output: the name {}/top.xlsx shows no format."),
        ("no/top.csv", "--output: the folder {}/no does not exist."),
    ],
)
def test_wrong_outputs(output: str, what: str, engine: Artefact, tmp_path: Path) -> None:
    write(lists(), tmp_path / "h.parquet")
    with pytest.raises(UsageError) as caught:
        score(engine, Settings(str(tmp_path / "h.parquet"), str(tmp_path / output)))
    assert str(caught.value) == what.format(tmp_path)


def test_remote_input_and_output(engine: Artefact, expected: Any) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/in/h.jsonl", lists().write_ndjson().encode())
    settings = Settings("memory://in/h.jsonl", "memory://out/top.parquet", k=5)
    score(engine, settings)
    with memory.open("/out/top.parquet", "rb") as stream:
        assert as_lists(pl.read_parquet(stream)) == expected
    with pytest.raises(UsageError) as caught:
        score(engine, settings)
    assert str(caught.value) == "memory://out/top.parquet exists already; it was not changed."


def many(file: Path, users: int) -> None:
    rng = np.random.default_rng(1)
    lists = [rng.integers(101, 141, 1 + user % 7).tolist() for user in range(users)]
    pl.DataFrame({"user": range(users), "items": lists}).write_parquet(file)


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


def test_kill_and_go_on(engine: Artefact, tmp_path: Path) -> None:
    """kill -9 after the first parts, then the same command: the same bytes as in one go."""
    many(tmp_path / "h.parquet", 3000)
    code = (
        "import functools, sys, time\n"
        "from slmc.commands import cli\n"
        "from slmc.scoring import settings\n"
        "from slmc.scoring.parts import Parts\n"
        "settings.Settings = functools.partial(settings.Settings, part_users=100)\n"
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
    assert answer["user"].to_list() == [*range(3000)]  # none twice, none lost
    whole = tmp_path / "whole.parquet"
    score(engine, Settings(str(tmp_path / "h.parquet"), str(whole), part_users=100))
    assert whole.read_bytes() == top.read_bytes()
    names = ["h.parquet", "top.parquet", "whole.parquet"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names


def test_the_command_from_pipe_to_pipe(engine: Artefact, expected: Any) -> None:
    command = [sys.executable, "-m", "slmc", "score", str(engine.path), "-k", "5"]
    done = subprocess.run(
        [*command, "-i", "-", "-o", "-"],
        input=lists().write_ndjson(),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["user"]: one["items"] for one in lines} == expected
    assert "scored 5 users in " in done.stderr


def test_the_command(engine: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(lists().rename({"user": "who", "items": "what"}), tmp_path / "h.parquet")
    arguments = ["score", str(engine.path), "-i", str(tmp_path / "h.parquet")]
    arguments += ["--columns.user", "who", "--columns.items", "what", "--json"]
    assert cli.call([*arguments, "-o", str(tmp_path / "top.parquet")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.pop("seconds") > 0
    assert summary == {
        "output": str(tmp_path / "top.parquet"), "users": 5, "popular": 2, "skipped": 0,
        "unknown": 2, "malformed": 0, "resumed": 0,
    }  # fmt: skip
    assert cli.call([*arguments, "-o", "-"]) == 2
    assert cli.call([*arguments, "-o", str(tmp_path / "top.parquet")]) == 2
    assert cli.call([*arguments, "-o", str(tmp_path / "x.csv"), "--shard", "3/2"]) == 2
    assert cli.call([*arguments, "-o", str(tmp_path / "x.csv"), "-k", "13"]) == 2
