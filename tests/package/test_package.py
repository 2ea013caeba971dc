"""The folder that ``slmc package`` writes."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from hand_engine import COUNTS, TITLES, by_hand
from serving import served

from slmc.artefact import sha256
from slmc.commands import cli
from slmc.errors import ArtefactError, MissingError, UsageError
from slmc.package import package as module
from slmc.package.package import Package, package, requirements, standalone

FILES = [
    "CARD.md",
    "Dockerfile",
    "README.md",
    "compose.yaml",
    "items.jsonl",
    "onnx/masked.onnx",
    "onnx/model.onnx",
    "package.json",
    "preprocessor.json",
    "recommender.py",
    "requirements.txt",
    "serve.py",
]


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if not f.is_dir())


def test_it_holds_real_files_that_all_users_can_read(packed: Package) -> None:
    assert files(packed.path) == FILES
    for path in [packed.path, *packed.path.rglob("*")]:
        assert not path.is_symlink()
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path
    about = json.loads((packed.path / "package.json").read_text())
    assert about == packed.about
    assert {name for name in about["files"]} == {
        "items.jsonl", "onnx/masked.onnx", "onnx/model.onnx", "preprocessor.json",
    }  # fmt: skip
    for name, digest in about["files"].items():
        assert sha256(packed.path / name) == digest
    assert not [path for path in packed.path.parent.iterdir() if path.name.startswith(".")]


def test_the_items_have_their_popularity(packed: Package) -> None:
    lines = (packed.path / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"row": row, "item": item, **TITLES.get(item, {}), "count": COUNTS[item]}
        for row, item in enumerate("abcd", start=1)
    ]


def test_an_engine_behind_a_link_in_a_path_with_spaces(tmp_path: Path) -> None:
    by_hand(tmp_path, top_k=3)
    run = tmp_path / "my runs" / "x"
    run.mkdir(parents=True)
    (run / "07-export").symlink_to(tmp_path / "engine")
    out = tmp_path / "to be shipped" / "new" / "package"
    umask = os.umask(0o077)
    try:
        assert cli.call(["package", str(run / "07-export"), "-o", str(out)]) == 0
    finally:
        os.umask(umask)
    assert files(out) == FILES
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert (out / "onnx").stat().st_mode & 0o005 == 0o005
    with served(out) as server:
        assert server.ask("POST", "/recommend", {"history": ["b"]})[0] == 200


def test_the_command_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, out = by_hand(tmp_path, top_k=3), tmp_path / "out"
    assert cli.call(["package", str(engine.path), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert cli.call(["package", str(engine.path), "-o", str(out), "--force", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(out) and printed["engine"] == engine.digest
    assert printed["bytes"] == sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    assert cli.call(["package", str(engine.path)]) == 2
    assert cli.call(["package", str(tmp_path), "-o", str(out)]) == 2


def test_what_slmc_did_not_make_is_never_overwritten(tmp_path: Path) -> None:
    engine = by_hand(tmp_path, top_k=3)
    other = tmp_path / "other"
    other.mkdir()
    (other / "package.json").write_text('{"name": "left-pad"}')
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(other)
    for out in (other, file, engine.path):
        with pytest.raises(UsageError) as caught:
            package(engine, out, force=True)
        assert caught.value.what == f"{out} exists and was not made by slmc; it was not changed."
        assert caught.value.remedy == "Name another --out, or pass --force to replace a package."
    with pytest.raises(UsageError, match="is a link; it was not changed"):
        package(engine, link, force=True)
    with pytest.raises(UsageError, match="lies inside the engine, which never changes"):
        package(engine, engine.path / "package")
    with pytest.raises(UsageError, match=r"cannot be written: .*file is not a folder"):
        package(engine, file / "package")
    assert files(other) == ["package.json"] and file.read_text() == "mine"


def test_a_package_is_replaced_only_by_force(tmp_path: Path) -> None:
    engine, out = by_hand(tmp_path, top_k=3), tmp_path / "out"
    package(engine, out)
    (out / "serve.py").write_text("changed")
    with pytest.raises(UsageError, match="exists already; it was not changed"):
        package(engine, out)
    assert (out / "serve.py").read_text() == "changed"
    package(engine, out, force=True)
    assert (out / "serve.py").read_text() != "changed" and files(out) == FILES


@pytest.mark.parametrize("there", [False, True])
def test_a_package_appears_whole_or_not_at_all(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, out = by_hand(tmp_path, top_k=3), tmp_path / "new" / "out"
    if there:
        package(engine, out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_readable_by_all", full)
    with pytest.raises(MissingError, match="No space left on device"):
        package(engine, out, force=True)
    if there:
        assert files(out) == FILES
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    else:
        assert not out.parent.exists()


def test_what_the_server_does_not_use_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = ["tensorrt/model.plan", "triton/recommender/config.pbtxt", "item_vectors.safetensors"]
    made = package(by_hand(tmp_path, top_k=3, more=more), tmp_path / "out")
    assert files(made.path) == FILES
    assert [message.partition(" is not in this package")[0] for message in caplog.messages] == [
        "The TensorRT plan of the engine",
        "The model repository for Triton",
    ]
    readme = (made.path / "README.md").read_text()
    assert all(message in readme for message in caplog.messages)


def test_an_engine_for_gpus_only_is_refused(tmp_path: Path) -> None:
    engine = by_hand(tmp_path, top_k=3, precision="bf16")
    with pytest.raises(UsageError) as caught:
        package(engine, tmp_path / "out")
    assert caught.value.what == (
        f"{engine.path} has precision bf16, which ONNX Runtime computes on GPUs only; the server "
        "of a package runs on processors."
    )
    assert not (tmp_path / "out").exists()


def test_an_engine_of_16_bits_is_packaged_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package(by_hand(tmp_path, top_k=3, precision="fp16"), tmp_path / "out")
    assert caplog.messages == [
        "precision fp16: the server runs on processors, which compute fp32 faster"
    ]


@pytest.mark.parametrize("rows", [3, 5])
def test_a_vocabulary_of_another_length_is_refused(rows: int, tmp_path: Path) -> None:
    engine = by_hand(tmp_path, top_k=3)
    lines = [json.dumps({"row": row, "item": str(row)}) for row in range(1, rows + 1)]
    (engine.path / "items.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ArtefactError, match="do not have the same items"):
        package(engine, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_requirements_are_pinned_to_the_versions_of_the_parity_check(tmp_path: Path) -> None:
    engine = by_hand(tmp_path, top_k=3)
    pinned = dict(line.split("==") for line in requirements(engine))
    assert pinned["onnxruntime"] == engine.manifest.versions["onnxruntime"]
    assert pinned["numpy"] == engine.manifest.versions["numpy"]
    assert {"flatbuffers", "packaging", "protobuf"} <= set(pinned)
    assert "torch" not in pinned and "sympy" not in pinned
    assert all(number == version(name) for name, number in pinned.items())
    changed = engine.manifest.model_copy(update={"versions": {"onnxruntime": "1.22.0"}})
    other = type(engine)(engine.path, changed)
    assert "onnxruntime==1.22.0" in requirements(other)
    assert f"numpy=={version('numpy')}" in requirements(other)


def test_the_code_imports_nothing_but_its_libraries(packed: Package) -> None:
    for name in ("serve.py", "recommender.py"):
        code = (packed.path / name).read_text()
        imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, flags=re.MULTILINE))
        others = imported - sys.stdlib_module_names
        assert others <= {"numpy", "onnxruntime", "recommender"}, name
    assert standalone("from slmc.package.recommender import A\n") == "from recommender import A\n"


def test_the_code_of_the_readme_runs(packed: Package) -> None:
    readme = (packed.path / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=packed.path,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'items': [{'item': 'd', 'title': ")
    asked = re.findall(r"curl -sS http://127.0.0.1:8000/recommend -d '(.*)'", readme)
    with served(packed.path) as server:
        status, reply = server.ask("POST", "/recommend", json.loads(asked[0]))
    assert status == 200 and [one["item"] for one in reply["items"]] == ["d", "c"]


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / "onnx/masked.onnx").write_bytes(b"x"), "onnx/masked.onnx has changed."),
        (lambda at: (at / "items.jsonl").unlink(), "items.jsonl: No such file or directory."),
        (lambda at: (at / "package.json").write_text("{}"), "package.json: not valid."),
        (lambda at: (at / "package.json").unlink(), "package.json: No such file or directory."),
    ],
)
def test_a_damaged_package_does_not_start(damage: Damage, message: str, tmp_path: Path) -> None:
    made = package(by_hand(tmp_path, top_k=3), tmp_path / "out")
    damage(made.path)
    command = [sys.executable, "serve.py", "--port", "0"]
    done = subprocess.run(command, cwd=made.path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {made.path}/{message}\n  Copy the package again.\n"


def test_without_its_libraries_it_says_what_to_install(packed: Package) -> None:
    hidden = "import sys; sys.modules['onnxruntime'] = None; import serve; sys.exit(serve.main([]))"
    command = [sys.executable, "-c", hidden]
    done = subprocess.run(command, cwd=packed.path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: onnxruntime cannot be imported.\n  Run `pip install -r requirements.txt`.\n"
    )
