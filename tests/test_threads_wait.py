"""Threads sleep while they wait, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

SHOW = (
    "import os, sys\n"
    "from slmc import cli\n"
    "cli.call = lambda arguments: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
    "cli.main()"
)


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_command_sets_how_threads_wait(given: str | None, used: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [used, "False"]
