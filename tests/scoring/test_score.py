"""``slmc score``: items and users that are left out; the command. The engine: tests/serving."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from score_inputs import HISTORIES, as_lists, lists, write

from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.errors import UsageError
from slmc.serving.opening import load

Run = Callable[..., pl.DataFrame]


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
