"""What users get wrong: two lines that name it and mend it, the exit code, and nothing written."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from slmc import artefact
from slmc.artefact import Artefact
from slmc.commands import cli

Captured = pytest.CaptureFixture[str]
Make = Callable[[Path], list[str]]

HEADER = "user_id,item_id,timestamp\n"
ROWS = "".join(f"u{user},i{item},{item}\n" for user in range(8) for item in range(8))
GOOD = HEADER + ROWS
RECIPE = """
version: 1
name: mine
data: {source: log.csv}
steps:
  - teach: {backbone: 'random://llama', layers: 3}
  - distill: {layers: 2, blocks: 2}
"""


def log(content: str | bytes, name: str = "log.csv") -> Make:
    def make(folder: Path) -> list[str]:
        file = folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["data", "prepare", str(file), "-o", str(folder / "out")]

    return make


def parquet(folder: Path) -> list[str]:
    whole = folder / "log.parquet"
    pl.DataFrame(
        {"user_id": ["a"] * 99, "item_id": ["b"] * 99, "timestamp": [1] * 99}
    ).write_parquet(whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    return ["data", "prepare", str(whole), "-o", str(folder / "out")]


def temporal(folder: Path) -> list[str]:
    (folder / "log.txt").write_text("".join(f"u{user} 1 2 3 4 5 6\n" for user in range(8)))
    split = ["--split.by", "time", "--split.valid", "5", "--split.test", "6"]
    named = ["data", "prepare", str(folder / "log.txt"), "--format", "sequence"]
    return [*named, *split, "-o", str(folder / "out")]


def recipe(text: str, *more: str) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "log.csv").write_text(GOOD)
        (folder / "mine.yaml").write_text(text)
        return ["run", str(folder / "mine.yaml"), "--out", str(folder / "out"), *more]

    return make


LOGS: dict[str, tuple[Make, int, str]] = {
    "no such file": (
        lambda folder: ["data", "prepare", str(folder / "no.csv"), "-o", str(folder / "out")],
        2,
        "no.csv",
    ),
    "an empty file": (log(""), 2, "log.csv"),
    "only a header": (log(HEADER), 2, "log.csv"),
    "wrong columns": (log("customer,sku,sold_at\na,b,1\n"), 2, "user_id"),
    "no time column": (log("user_id,item_id\n" + "a,b\n" * 9), 2, "timestamp"),
    "NaN and empty ids": (log(HEADER + "nan,i1,1\n,i2,2\n" * 20 + ROWS), 2, "log.csv"),
    "times that are none": (log(HEADER + "u1,i1,soon\n" * 40 + ROWS), 2, "soon"),
    "binary garbage": (log(bytes(range(256)) * 40), 2, "log.csv"),
    "truncated gz": (log(gzip.compress(GOOD.encode())[:-30], "log.csv.gz"), 2, "log.csv.gz"),
    "no gz at all": (log(GOOD, "log.csv.gz"), 2, "log.csv.gz"),
    "truncated parquet": (parquet, 2, "log.parquet"),
    "broken JSON lines": (log('{"user_id": \n' * 30, "log.jsonl"), 2, "log.jsonl"),
    "an unknown format": (log("<log>\n<row/>\n</log>\n", "log.xml"), 2, "log.xml"),
    "one user of two items": (log(HEADER + "u,a,1\nu,b,2\n"), 2, "one user"),
    "a temporal split of what has no times": (temporal, 2, "time"),
}

RECIPES: dict[str, tuple[Make, int, str]] = {
    "an unknown key": (
        recipe(RECIPE.replace("layers: 3", "layerz: 3")),
        2,
        "mine.yaml:6: teach.layerz",
    ),
    "an unknown stage": (recipe(RECIPE.replace("distill:", "destill:")), 2, "mine.yaml:7"),
    "a value of the wrong type": (recipe(RECIPE.replace("layers: 2", "layers: few")), 2, "few"),
    "not YAML": (recipe("version: [1\nname"), 2, "mine.yaml"),
    "not text": (recipe("\x00\x01\x02"), 2, "mine.yaml"),
    "a newer version": (recipe(RECIPE.replace("version: 1", "version: 99")), 2, "99"),
    "no recipe of that name": (lambda folder: ["run", "quickstrat"], 2, "quickstart"),
    "a --set of no key": (recipe(RECIPE, "--set", "teach.layrs=1"), 2, "teach.layrs"),
    "a stage that is not there to stop at": (recipe(RECIPE, "--until", "export"), 2, "export"),
    "two keys alike": (recipe(RECIPE + "name: again\n"), 2, "mine.yaml:8"),
    "a log that is not there": (recipe(RECIPE.replace("log.csv", "gone.csv")), 2, "gone.csv"),
}


def check(
    case: tuple[Make, int, str], folder: Path, captured: Captured, patch: pytest.MonkeyPatch
) -> None:
    """Two lines, the code, no artefact and nothing half-written."""
    make, code, names = case
    cache = folder / "cache"
    patch.setenv("SLMC_CACHE", str(cache))
    patch.chdir(folder)
    arguments = make(folder)
    captured.readouterr()
    assert cli.call([*arguments, "-q"]) == code
    out, error = captured.readouterr()
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert out == "" and "Traceback" not in error
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  "), error
    assert names in error
    assert not (folder / "out").exists()
    assert not any((cache / "objects").glob("*")), "nothing may look like an artefact"


@pytest.mark.parametrize("name", LOGS)
def test_a_log(
    name: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(LOGS[name], tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(
    name: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(RECIPES[name], tmp_path, capsys, monkeypatch)


def _missing(path: Path) -> str:
    shutil.rmtree(path)
    return str(path)


def _no_manifest(path: Path) -> str:
    (path / artefact.MANIFEST).unlink()
    return str(path)


def _broken_manifest(path: Path) -> str:
    (path / artefact.MANIFEST).write_text("{")
    return path.name


def _no_json_object(path: Path) -> str:
    (path / artefact.MANIFEST).write_text("[]")
    return path.name


def _of_a_newer_slmc(path: Path) -> str:
    manifest = json.loads((path / artefact.MANIFEST).read_text())
    manifest["format"] = 99
    (path / artefact.MANIFEST).write_text(json.dumps(manifest))
    return path.name


def _edited_weights(path: Path) -> str:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "model.safetensors"


def _no_weights(path: Path) -> str:
    (path / "model.safetensors").unlink()
    return "model.safetensors"


@pytest.mark.parametrize(
    "spoil",
    [
        _missing,
        _no_manifest,
        _broken_manifest,
        _no_json_object,
        _of_a_newer_slmc,
        _edited_weights,
        _no_weights,
    ],
)
@pytest.mark.parametrize("command", ["distill", "export"])
def test_an_artefact(
    spoil: Callable[[Path], str],
    command: str,
    teacher: Artefact,
    dataset: Artefact,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(folder: Path) -> list[str]:
        model = artefact.copy(teacher, folder / "teacher").path
        spoil(model)
        return [command, str(model), "--data", str(dataset.path), "-o", str(folder / "out")]

    named = {_edited_weights: "model.safetensors", _no_weights: "model.safetensors"}
    check((make, 2, named.get(spoil, "teacher")), tmp_path, capsys, monkeypatch)


def test_an_artefact_of_another_kind(
    dataset: Artefact, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", str(dataset.path), "-o", str(tmp_path / "out")]
    check((lambda _: arguments, 2, "dataset"), tmp_path, capsys, monkeypatch)
