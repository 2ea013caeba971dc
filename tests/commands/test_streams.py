"""A reader that goes away, and a place that takes nothing: what a command comes to all the same."""

import io
import os
import subprocess
import sys

import pytest

from slmc.commands import cli, streams
from slmc.errors import MissingError

UNWRITTEN = (
    "error: the result cannot be written to standard output: No space left on device.\n"
    "  Redirect it to a writable file or pipe, and run the same command again.\n"
)


def shell(line: str) -> tuple[int, str]:
    """Exit code and standard error of ``slmc`` in a shell."""
    whole = line.replace("slmc", f"{sys.executable} -m slmc")
    done = subprocess.run(["bash", "-c", whole], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("slmc recipe schema | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("slmc recipe schema | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("slmc --version >&-", 0, ""),
        ("slmc --version >/dev/full", 4, UNWRITTEN),
        ("slmc show nowhere 2>/dev/full", 2, ""),
    ],
)
def test_the_exit_code_is_what_the_command_made_of_it(line: str, code: int, error: str) -> None:
    assert shell(line) == (code, error)


def test_what_nobody_reads_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        guarded = streams.Guarded(pipe, holds_result=True)
        assert guarded.write("verdict\n") == 8
        guarded.flush()
        guarded.write("more\n")
        guarded.flush()


def test_a_result_that_is_lost_is_an_error_once() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        guarded = streams.Guarded(full, holds_result=True)
        guarded.write("verdict\n")
        with pytest.raises(MissingError, match="No space left on device"):
            guarded.flush()
        guarded.flush()


def test_the_log_is_no_reason_to_fail() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        guarded = streams.Guarded(full, holds_result=False)
        guarded.write("step 1\n")
        guarded.flush()


def test_a_passed_gate_passes_with_its_pipe_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", streams.Guarded(pipe, holds_result=True))
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert cli.call(["recipe", "check", "quickstart"]) == 0
