"""Write a folder that serves an engine without slmc: real files, no links, no PyTorch."""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from slmc import __version__
from slmc.artefact import Artefact, sha256
from slmc.errors import ArtefactError, MissingError, UsageError
from slmc.export.runtime.engine import MASKED, Description, read_description
from slmc.export.vocabulary import FILE, popularity
from slmc.system import check_parent, folder_made, put_folder, refuse_existing, unwritable

ABOUT = "package.json"
FORMAT = "slmc-package-1"
TEMPLATES = Path(__file__).parent
CODE = ("recommender.py", "serve.py")
"""Copied into the package, where they import each other without ``slmc.package``."""
LIBRARIES = ("onnxruntime", "numpy")
LEFT_OUT = {
    "tensorrt/": "The TensorRT plan of the engine is not in this package: a plan fits one GPU and "
    "one version. Serve it with Triton (`slmc export --formats triton,tensorrt`).",
    "triton/": "The model repository for Triton is not in this package: it needs no other file, so "
    "copy the folder `triton/` of the engine.",
}
"""Files of an engine that ``serve.py`` does not use, and how to serve them."""

log = logging.getLogger("slmc.package")


@dataclass(frozen=True)
class Package:
    """A written package."""

    path: Path
    about: dict[str, Any]
    """Content of ``package.json``."""


def package(engine: Artefact, out: Path, *, force: bool = False) -> Package:
    """Write everything that serves ``engine`` into the new folder ``out``, or nothing.

    Args:
        engine: The engine, its hashes checked.
        out: The new folder; with ``force``, a package that is replaced.
        force: Replace a package that slmc made.

    Raises:
        UsageError: Something else is at ``out``, or the engine runs on GPUs only.
        ArtefactError: A file of the engine is missing or broken.
        MissingError: The disk is full.
    """
    check_free(engine, out, force=force)
    described = read_description(engine.path)
    if described.precision == "bf16":
        raise UsageError(
            f"{engine.path} has precision bf16, which ONNX Runtime computes on GPUs only; the "
            "server of a package runs on processors.",
            "Export again with --precision fp32 or int8, or serve it with Triton on a GPU.",
        )
    engine.file(MASKED)  # raises if it is missing
    if described.precision == "fp16":
        log.warning("precision fp16: the server runs on processors, which compute fp32 faster")
    left_out = [
        text
        for at, text in LEFT_OUT.items()
        if any(f.startswith(at) for f in engine.manifest.files)
    ]
    for text in left_out:
        log.warning("%s", text)
    staged = out.parent / f".{out.name}.package-{os.getpid()}"
    try:
        with folder_made(out.parent):
            try:
                shutil.rmtree(staged, ignore_errors=True)
                about = _write(staged, engine, described, left_out)
                put_folder(staged, out)
            finally:
                shutil.rmtree(staged, ignore_errors=True)  # no longer there after success
    except OSError as error:
        raise unwritable(out, error) from None
    return Package(out, about)


def check_free(engine: Artefact, out: Path, *, force: bool = False) -> None:
    """Check that a package of ``engine`` can be written to ``out``.

    Raises:
        UsageError: ``out`` cannot be written, is not a package that may be replaced, or lies in
            the engine.
    """
    remedy = "Name another --out, or pass --force to replace a package."
    if out.is_symlink():
        raise UsageError(f"{out} is a link; it was not changed.", "Name another --out.")
    if engine.path.resolve() in out.absolute().resolve().parents:
        raise UsageError(
            f"{out} lies inside the engine, which never changes.", "Name another --out."
        )
    refuse_existing(out, UsageError, ours=_is_package(out), replace=force, remedy=remedy)
    check_parent(out)


def requirements(engine: Artefact) -> list[str]:
    """Return ``name==version`` of ONNX Runtime, NumPy and all that they need.

    ONNX Runtime and NumPy have the versions with which the engine was compared with its model.
    """
    pinned = {name: _version_of(engine, name) for name in LIBRARIES}
    pending = list(LIBRARIES)
    while pending:
        for name in _needed_by(pending.pop()):
            try:
                pinned.setdefault(name, distribution(name).version)
            except PackageNotFoundError:
                continue  # for another platform or version of Python
            if name not in LIBRARIES:
                pending.append(name)
    return [f"{name}=={version}" for name, version in sorted(pinned.items())]


def _write(
    folder: Path, engine: Artefact, described: Description, left_out: list[str]
) -> dict[str, Any]:
    """Write the files of a package, ``package.json`` last; return its content."""
    for name in engine.manifest.files:
        if name.startswith("onnx/") or name == "preprocessor.json":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(engine.path / name, folder / name)
    shutil.copyfile(engine.file("README.md"), folder / "CARD.md")
    _write_items(engine, folder / FILE)
    for name in CODE:
        (folder / name).write_text(standalone((TEMPLATES / name).read_text("utf-8")), "utf-8")
    python = ".".join(map(str, sys.version_info[:2]))
    (folder / "requirements.txt").write_text("\n".join(requirements(engine)) + "\n")
    dockerfile = (TEMPLATES / "Dockerfile").read_text().replace("{python}", python)
    (folder / "Dockerfile").write_text(dockerfile)
    shutil.copyfile(TEMPLATES / "compose.yaml", folder / "compose.yaml")
    about = {
        "format": FORMAT,
        "slmc": __version__,
        "engine": engine.digest,
        "model": described.source,
        "precision": described.precision,
        "history": described.history,
        "top_k": described.top_k,
        "num_items": described.num_items,
        "libraries": {name: _version_of(engine, name) for name in LIBRARIES},
    }
    readme = _readme(folder, about, python, left_out)
    (folder / "README.md").write_text(readme, "utf-8")
    files = [folder / name for name in (FILE, "preprocessor.json")]
    files += sorted(file for file in (folder / "onnx").iterdir())
    about["files"] = {str(file.relative_to(folder)): sha256(file) for file in files}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    _readable_by_all(folder)
    return about


def standalone(code: str) -> str:
    """The code with imports of ``slmc.package`` as imports from the same folder."""
    return re.sub(r"^from slmc\.package\.(\w+) import", r"from \1 import", code, flags=re.MULTILINE)


def _write_items(engine: Artefact, file: Path) -> None:
    """Write the vocabulary of the engine with the training interactions of each item."""
    counts = popularity(engine.file("items.parquet")).sort("row")["count"]
    try:
        with engine.file(FILE).open("rb") as lines, file.open("w", encoding="utf-8") as out:
            for line, count in zip(lines, counts, strict=True):
                entry = json.loads(line) | {"count": count}
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except ValueError:
        raise ArtefactError(
            f"{engine.path}: items.jsonl and items.parquet do not have the same items.",
            "Run `slmc export` again.",
        ) from None


def _readme(folder: Path, about: dict[str, Any], python: str, left_out: list[str]) -> str:
    with (folder / FILE).open(encoding="utf-8") as lines:
        ids = [json.loads(line)["item"] for line, _ in zip(lines, range(2), strict=False)]
    shown = min(3, about["top_k"])
    asked = json.dumps({"history": ids, "k": shown, "exclude_seen": True}, ensure_ascii=False)
    values = about | {
        "engine": about["engine"][:12],
        "python": python,
        "shown": shown,
        "default_k": min(10, about["top_k"]),
        "request": asked.replace("'", "'\\''"),
        "python_history": repr(ids),
        "left_out": "".join(f"\n{text}\n" for text in left_out),
    }
    return (TEMPLATES / "README.md").read_text("utf-8").format(**values).rstrip() + "\n"


def _version_of(engine: Artefact, name: str) -> str:
    """The version that the engine was made with, or else the installed one."""
    recorded = engine.manifest.versions.get(name)
    if recorded is not None:
        return recorded
    try:
        return distribution(name).version
    except PackageNotFoundError:
        raise MissingError(
            f"{name} is not installed, and {engine.path} does not say which version it was made "
            "with.",
            "Install it with `pip install 'slmc[onnx]'`.",
        ) from None


def _needed_by(name: str) -> Iterator[str]:
    """Names of the distributions that an installed one always needs."""
    try:
        needed = distribution(name).requires or []
    except PackageNotFoundError:
        return
    for line in needed:
        requirement, _, marker = line.partition(";")
        found = re.match(r"[\w.-]+", requirement.strip())
        if found and "extra" not in marker:
            yield found[0].lower()


def _readable_by_all(folder: Path) -> None:
    """Let the user of the container read the files, whatever the umask is here."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _is_package(folder: Path) -> bool:
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("format") == FORMAT
