"""Requests that schemathesis derives from the OpenAPI description."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hand_engine import by_hand
from served_engine import server

pytestmark = pytest.mark.slow


def test_every_answer_is_as_described(tmp_path: Path) -> None:
    """One check is left out: ids that fit the schema can still be unknown, which is refused."""
    pytest.importorskip("schemathesis")
    with server(by_hand(tmp_path, top_k=3).path) as (_, port):
        command = ["run", f"http://127.0.0.1:{port}/openapi.json", "--max-examples", "30"]
        command += ["--exclude-checks", "positive_data_acceptance", "--seed", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *command],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d{3,} generated, \d{3,} passed", done.stdout)
