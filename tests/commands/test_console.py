"""The log for people and for machines, progress, and the two lines of an error."""

import io
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from slmc.commands import console
from slmc.errors import DataError

log = logging.getLogger("slmc.test")


def progress(done: int, total: int | None = 4, **beside: object) -> None:
    fields = {"task": "teach", "done": done, "total": total, "unit": "steps", **beside}
    log.debug("progress", extra={"progress": fields})


def test_the_log_goes_to_stderr_and_the_result_to_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.session():
        log.debug("a detail")
        log.info("teach: running")
        log.warning("few users")
        console.result("runs/quickstart")
    assert capsys.readouterr() == ("runs/quickstart\n", "teach: running\nwarning: few users\n")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"quiet": True}, "warning: w\n"),
        ({}, "i\nwarning: w\n"),
        ({"verbose": True}, "d\ni\nwarning: w\n"),
    ],
)
def test_quiet_and_verbose(
    options: dict[str, bool], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.session(**options):
        log.debug("d")
        log.info("i")
        log.warning("w")
    assert capsys.readouterr().err == shown


def test_a_session_leaves_the_loggers_as_they_were() -> None:
    ours = logging.getLogger("slmc")
    before = ours.level, ours.propagate, list(ours.handlers)
    with console.session():
        assert ours.handlers != before[2]
    assert (ours.level, ours.propagate, list(ours.handlers)) == before


def test_markup_in_a_message_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    with console.session():
        log.info("columns [bold]user[/bold] of [1, 2]")
    assert capsys.readouterr().err == "columns [bold]user[/bold] of [1, 2]\n"


def test_every_record_is_a_line_of_json_with_its_utc_time(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    with console.session(quiet=True) as lines:
        log.info("held until there is a file")
        lines.open(file)
        progress(1, terms={"cosine": 0.25, "ce": math.nan})
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["message"] == "held until there is a file"
    assert first["time"].endswith("Z") and first["level"] == "info"
    assert second["progress"]["terms"] == {"cosine": 0.25, "ce": "nan"}


def test_a_log_is_added_to_and_a_traceback_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("{}\n")
    with console.session() as lines:
        lines.open(file)
        try:
            raise ValueError("why")
        except ValueError:
            log.debug("step teach broke", exc_info=True)
    assert len(file.read_text().splitlines()) == 2
    assert "ValueError: why" in json.loads(file.read_text().splitlines()[1])["exception"]


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with console.session():
        log.info("no run")
    assert not list(tmp_path.iterdir())


def test_progress_is_a_line_every_thirty_seconds_where_there_is_no_terminal() -> None:
    now, said = [0.0], list[str]()
    ticks = console.ProgressLines(said.append, clock=lambda: now[0])
    for done in range(1, 8):
        fields = {"task": "teach", "done": done, "total": 10, "unit": "steps"}
        ticks.show(fields | {"terms": {"ce": 5.8712}})
        now[0] += 10
    assert said == [
        "teach: 4 of 10 steps, ce 5.87, about 60 s left",
        "teach: 7 of 10 steps, ce 5.87, about 30 s left",
    ]


def test_a_task_that_starts_again_is_timed_anew() -> None:
    now, said = [0.0], list[str]()
    ticks = console.ProgressLines(said.append, clock=lambda: now[0])
    for done in (1, 2):
        ticks.show({"task": "parity", "done": done, "total": 2, "unit": "shapes"})
        now[0] += 100
        ticks.show({"task": "parity", "done": 2, "total": 2, "unit": "shapes"})
    assert all("-" not in line for line in said)


def test_bars_come_with_a_task_and_go_with_it() -> None:
    stream = io.StringIO()
    bars = console.ProgressBars(Console(file=stream, force_terminal=True, width=100))
    bars.show({"task": "teach", "done": 1, "total": 2, "unit": "steps", "terms": {"ce": 5.5}})
    assert bars._bars is not None
    bars.show({"task": "teach", "done": 2, "total": 2, "unit": "steps"})
    assert bars._bars is None
    assert "teach" in stream.getvalue() and "ce 5.5" in stream.getvalue()


def test_progress_is_not_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with console.session(quiet=True):
        progress(1)
        progress(4)
    assert capsys.readouterr().err == ""


def test_libraries_do_not_talk_into_the_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with console.session() as lines, warnings.catch_warnings():
        lines.open(tmp_path / "log.jsonl")
        warnings.simplefilter("always")
        logging.getLogger("somelibrary").warning("noise")
        logging.getLogger("transformers").warning("noise")
        warnings.warn("deprecated", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
    assert "deprecated" in (tmp_path / "log.jsonl").read_text()


def test_an_error_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(DataError("log.csv:3: no [user].", "Mend the line."))
    assert capsys.readouterr().err == "error: log.csv:3: no [user].\n  Mend the line.\n"


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def said() -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with console.session():
            log.warning("few users")
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in said()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in said()


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0 s"), (42.4, "42 s"), (210, "3.5 min"), (7560, "2.1 h")]
)
def test_durations(value: float, text: str) -> None:
    assert console.duration(value) == text
