"""What the command line says of a wrong call, a fault and an interruption: two lines."""

import subprocess
import sys
from typing import Any

import pytest
from polars.exceptions import PanicException

from slmc import artefact
from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.errors import BrokenRunError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["exprot"],
            "error: No such command 'exprot'. Did you mean 'export'?\n  See `slmc --help`.\n",
        ),
        (["run"], "error: Missing argument 'RECIPE'.\n  See `slmc run --help`.\n"),
        (
            ["distill", "T", "--layers", "0"],
            "error: --layers: should be greater than or equal to 1, not 0\n"
            "  See `slmc distill --help`.\n",
        ),
        (
            ["distill", "T", "--losses.norm", "much"],
            "error: --losses.norm: should be a valid number, unable to parse string as a number, "
            'not "much"\n  See `slmc distill --help`.\n',
        ),
        (
            ["teach", "--backbone", "x"],
            "error: no dataset is named.\n  Name it with --data.\n",
        ),
        (
            ["show", "nowhere"],
            "error: nowhere does not exist.\n"
            "  Name a directory that slmc made; the last line of its output is the path.\n",
        ),
        (
            ["validate", "E", "--max-drop", "ndcg@10=1%"],
            "error: --max-drop ndcg@10=1%: needs a --baseline to compare with.\n"
            "  See `slmc validate --help`.\n",
        ),
        (
            ["validate", "E", "--min", "ndgc@10=1"],
            "error: --min ndgc@10=1: there is no metric 'ndgc@10' to gate; there are hr@K, "
            "ndcg@K, ndcg, mrr, ce, ce_calibrated, overlap@K, size_mb\n"
            "  See `slmc validate --help`.\n",
        ),
        (
            ["validate", "E", "--baseline", "M", "--max-drop", "ce=3%"],
            "error: --max-drop ce=3%: 3% of ce would pass models that rank far worse; give a "
            "budget in nats, such as 0.02\n  See `slmc validate --help`.\n",
        ),
        (
            ["validate", "E", "--max", "64"],
            "error: --max 64: expected METRIC=VALUE.\n  See `slmc validate --help`.\n",
        ),
        (
            ["validate", "E", "--max", "size_mb=64", "--confidence", "2"],
            "error: --max size_mb=64: --confidence: should be less than 1, not 2\n"
            "  See `slmc validate --help`.\n",
        ),
        (
            ["recipe", "show", "quickstart", "--set", "seed=1"],
            "error: --set has no effect without --resolved.\n  Add --resolved.\n",
        ),
    ],
)
def test_called_wrongly(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(arguments) == 2
    assert capsys.readouterr() == ("", message)


def test_nothing_to_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["validate", "E"]) == 5
    assert capsys.readouterr().err == (
        "error: there is no gate, so there is nothing to decide.\n"
        "  Add a gate such as --max-drop ndcg@10=1% or --max size_mb=64.\n"
    )


def test_an_option_that_does_not_exist_names_one_that_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.call(["distill", "T", "--layer", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such option: --layer") and "--layers" in error
    assert error.endswith("\n  See `slmc distill --help`.\n")


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call([]) == 2
    out, err = capsys.readouterr()
    assert "distill" in out + err and "error" not in err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (
            RuntimeError("first line\nsecond"),
            3,
            "error: RuntimeError: first line\n"
            "  This is a bug in slmc; the same command with -v prints the traceback.\n",
        ),
        (
            MemoryError(),
            3,
            "error: MemoryError\n"
            "  This is a bug in slmc; the same command with -v prints the traceback.\n",
        ),
        (
            PanicException("assertion failed"),
            3,
            "error: PanicException: assertion failed\n"
            "  This is a bug in slmc; the same command with -v prints the traceback.\n",
        ),
        (
            BrokenRunError("step teach: it broke.", "Run it again."),
            3,
            "error: step teach: it broke.\n  Run it again.\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "error: interrupted.\n  Run the same command again: it resumes from there.\n",
        ),
        (
            SystemExit(143),
            143,
            "error: terminated.\n  Run the same command again: it resumes from there.\n",
        ),
    ],
)
def test_what_breaks_inside_is_two_lines(
    raised: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> Artefact:
        raise raised

    monkeypatch.setattr(artefact, "load", broken)
    assert cli.call(["show", "somewhere"]) == code
    assert capsys.readouterr() == ("", message)


def test_with_verbose_a_fault_shows_where_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Artefact:
        raise RuntimeError("why")

    monkeypatch.setattr(artefact, "load", broken)
    assert cli.call(["show", "somewhere", "-v"]) == 3
    error = capsys.readouterr().err
    assert "Traceback" in error and "in broken" in error
    assert cli.call(["show", "somewhere"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_ends_with_143_in_a_process() -> None:
    code = (
        "import os, signal, slmc.commands.cli, slmc.pipeline.runner as p\n"
        "def run(*_, **__):\n"
        "    with p._sigterm_ends_the_run():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "slmc.artefact.load = run\n"
        "raise SystemExit(slmc.commands.cli.call(['show', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == (
        "error: terminated.\n  Run the same command again: it resumes from there.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["distill", ""], "TEACHER"),
        (["export", ""], "MODEL"),
        (["bench", "engine", "--data", ""], "--data"),
        (["quantize", "model", "-o", ""], "--out"),
        (["recommend", "", "1"], "ENGINE"),
        (["show", "model", " "], "ARTEFACT"),
        (["data", "prepare", ""], "SOURCE"),
        (["cache", "gc", "--runs", ""], "--runs"),
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(arguments) == 2
    command = " ".join(one for one in arguments[:2] if one in ("data", "cache", "prepare", "gc"))
    said, remedy = capsys.readouterr().err.splitlines()
    assert name in said and said.endswith(
        "it is empty; maybe a variable is not set, or the command that prints it failed"
    )
    assert remedy == f"  See `slmc {command or arguments[0]} --help`."
