"""Terminal output: results on stdout; log, progress and errors on stderr.

Modules log under ``slmc`` and never print. A record with ``extra={"progress": {...}}`` (task,
done, total, unit, and any further numbers) moves a progress bar on a terminal; without a terminal
it prints a line every 30 s. Every record of a run is also written to its ``log.jsonl``.
"""

import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from slmc import processes
from slmc.errors import SlmcError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

EVERY_S = 30.0
"""Seconds between two lines of progress if there is no terminal."""
WIDTH = 140
"""Width of tables in characters if there is no terminal."""
STEP_FIELDS = frozenset({"task", "done", "total", "unit"})
WARNINGS = "py.warnings"
QUIET_LIBRARIES = ("transformers", "huggingface_hub", "torch", "accelerate", "peft", "httpx")
ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before a library that reads them is imported, unless the user has set them."""

log = logging.getLogger("slmc.console")
_verbose = _quiet = False


class ProgressDisplay(Protocol):
    """Shows progress."""

    def show(self, progress: Mapping[str, Any]) -> None:
        """Show the progress of a task."""

    def close(self) -> None:
        """Remove the progress from the screen."""


class ProgressBars:
    """Progress as bars; a bar disappears when its task is done."""

    def __init__(self, console: "Console") -> None:
        """Draw on ``console``; nothing is drawn before the first task."""
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, progress: Mapping[str, Any]) -> None:
        """Move the bar of the task; close the display after the last task."""
        name, total = str(progress["task"]), progress.get("total")
        bars = self._bars or _new_bars(self._console)
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, note="")
        note = f"{progress.get('unit', '')} {progress_numbers(progress)}".strip()
        bars.update(self._tasks[name], completed=progress["done"], total=total, note=note)
        if self._bars is None:
            self._bars = bars
            bars.start()
        if total is not None and progress["done"] >= total:
            bars.remove_task(self._tasks.pop(name))
            if not self._tasks:
                self.close()

    def close(self) -> None:
        """Remove the bars."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}


def _new_bars(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    note = TextColumn("{task.fields[note]}", markup=False)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(24), MofNCompleteColumn(), note, Remaining(compact=True))
    return Progress(*columns, console=console, transient=True)


class ProgressLines:
    """Progress as a line every 30 seconds, for logs and pipes."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        """Write lines with ``write``; ``clock`` returns seconds."""
        self._write, self._clock = write, clock
        self._began: dict[str, tuple[float, float]] = {}
        self._last_line: dict[str, float] = {}

    def show(self, progress: Mapping[str, Any]) -> None:
        """Write a line, unless the last one of the task is less than 30 seconds old."""
        name, done, total = str(progress["task"]), progress["done"], progress.get("total")
        now = self._clock()
        began, first = self._began.setdefault(name, (now, done))
        if now - self._last_line.setdefault(name, now) >= EVERY_S:
            self._last_line[name] = now
            parts = [f"{done}{f' of {total}' if total else ''} {progress.get('unit', '')}".strip()]
            parts += [progress_numbers(progress)] * bool(progress_numbers(progress))
            if total and done > first:
                left = (now - began) / (done - first) * (total - done)
                parts.append(f"about {duration(left)} left")
            self._write(f"{name}: {', '.join(parts)}")
        if total is not None and done >= total:
            self._began.pop(name)
            self._last_line.pop(name)

    def close(self) -> None:
        """Do nothing: there is no display."""


class NoProgress:
    """No progress."""

    def show(self, progress: Mapping[str, Any]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing: there is no display."""


class TerminalHandler(logging.Handler):
    """Prints log records: warnings with a mark, progress as bars or lines."""

    def __init__(self, console: "Console", level: int) -> None:
        """Print records of at least ``level`` on ``console``."""
        super().__init__(logging.DEBUG)
        self._console, self._shown_from = console, level
        self.progress: ProgressDisplay
        if level > logging.INFO:
            self.progress = NoProgress()
        elif console.is_terminal:
            self.progress = ProgressBars(console)
        else:
            self.progress = ProgressLines(self._print)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        try:
            progress = getattr(record, "progress", None)
            if progress is not None:
                self.progress.show(progress)
                return
            # Warnings of libraries are for their developers: only with -v, and in log.jsonl.
            level = logging.DEBUG if record.name == WARNINGS else record.levelno
            if level >= self._shown_from:
                mark = "warning: " if level == logging.WARNING else ""
                mark = "error: " if level > logging.WARNING else mark
                style = "yellow" if mark else "dim" if level < logging.INFO else None
                self._print(f"{mark}{record.getMessage()}", style)
        except Exception:
            self.handleError(record)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bars."""
        self.progress.close()
        super().close()


class JsonLines(logging.Handler):
    """Writes every record as a line of JSON with its UTC time; buffers them until :meth:`open`."""

    def __init__(self) -> None:
        """Buffer records until :meth:`open`."""
        super().__init__(logging.DEBUG)
        self._buffer: list[str] = []
        self._file: IO[str] | None = None
        self._full = False
        self.step: str | None = None
        """Id of the running step of a recipe, written with each record."""

    def open(self, path: Path) -> None:
        """Append the buffered and all later records to ``path``; a second call does nothing."""
        if self._file is None:
            # The file stays open, so that a record needs no open and close.
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._file.writelines(self._buffer)
            self._buffer.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Write or buffer the record."""
        if self._full:
            return
        try:
            fields = as_json(record) | ({"step": self.step} if self.step is not None else {})
            line = json.dumps(fields, default=str, allow_nan=False) + "\n"
            if self._file is None:
                self._buffer.append(line)
            else:
                self._file.write(line)
        except OSError as error:
            self._full = True
            log.warning("log.jsonl ends here: %s", error.strerror)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the file; buffered records are dropped."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk the file buffer is lost
                self._file.close()
        self._file = None
        super().close()


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    """A log record as JSON data; a number that is not finite becomes text."""
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    progress = getattr(record, "progress", None)
    if progress is not None:
        fields["progress"] = _finite(progress)
    if record.exc_info:
        fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
    return fields


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def session(*, quiet: bool = False, verbose: bool = False) -> Iterator[JsonLines]:
    """Show the log while a command runs, without the output of libraries.

    Args:
        quiet: Warnings and errors only.
        verbose: Everything, and tracebacks.

    Yields:
        The handler that writes ``log.jsonl`` after :meth:`JsonLines.open`.
    """
    global _verbose, _quiet
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Of several processes the main one reports; the others print their errors only.
    joins = not processes.is_main()
    _verbose, _quiet = verbose, quiet or joins
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    level = logging.CRITICAL if joins else level
    lines, terminal = JsonLines(), TerminalHandler(_stderr(), level)
    ours, warned, root = (logging.getLogger(n) for n in ("slmc", WARNINGS, None))
    before = ours.level, ours.propagate, warned.propagate
    libraries = {name: logging.getLogger(name).level for name in QUIET_LIBRARIES}
    others = logging.NullHandler()  # without a handler Python prints records itself
    ours.setLevel(logging.DEBUG)
    ours.propagate = warned.propagate = False
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    for logger in (ours, warned):
        logger.addHandler(lines)
        logger.addHandler(terminal)
    root.addHandler(others)
    logging.captureWarnings(True)
    try:
        yield lines
    finally:
        logging.captureWarnings(False)
        for logger in (ours, warned):
            logger.removeHandler(lines)
            logger.removeHandler(terminal)
        root.removeHandler(others)
        for name, was in libraries.items():
            logging.getLogger(name).setLevel(was)
        ours.level, ours.propagate, warned.propagate = before
        terminal.close()
        lines.close()


def result(text: str) -> None:
    """Print the result of a command, in the main process."""
    if processes.is_main():
        sys.stdout.write(text + "\n")


def flush() -> None:
    """Write the result now, since the command goes on."""
    sys.stdout.flush()


def result_json(value: Any) -> None:
    """Print the result of a command as JSON."""
    result(json.dumps(value, indent=2, allow_nan=False))


def show(what: "RenderableType", *, aside: bool = False) -> None:
    """Print a table on stdout, or with ``aside`` on stderr, unless ``-q`` is set."""
    if not (aside and _quiet) and processes.is_main():
        (_stderr() if aside else _console(sys.stdout)).print(what)


def error(problem: SlmcError) -> None:
    """Print an error in two lines, message and remedy; with ``-v`` also the traceback."""
    if _verbose:
        sys.stderr.write(traceback.format_exc())
    text = f"{problem.what}\n  {problem.remedy}"
    console = _stderr()
    console.print("error:", style="bold red", end=" ", highlight=False)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def reset() -> None:
    """Forget the ``-q`` and ``-v`` of an earlier call."""
    global _verbose, _quiet
    _verbose = _quiet = False


def progress_numbers(progress: Mapping[str, Any]) -> str:
    """The further numbers of a progress record, such as ``ce 5.87, cosine 0.231``."""
    further = {k: v for k, v in progress.items() if k not in STEP_FIELDS}
    flat = [
        (inner, number)
        for name, value in further.items()
        for inner, number in (value.items() if isinstance(value, Mapping) else [(name, value)])
    ]
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in flat
    )


def duration(value: float) -> str:
    """Seconds as text: ``42 s``, ``3.5 min``, ``2.1 h``."""
    if value < 100:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def _stderr() -> "Console":
    return _console(sys.stderr)


def _console(stream: IO[str]) -> "Console":
    from rich.console import Console

    width = None if stream.isatty() else WIDTH
    return Console(file=stream, width=width, highlight=False)
