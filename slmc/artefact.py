"""The artefact: the directory that every stage reads and writes, and that never changes.

    student/
    ├── slmc.json            the manifest: kind, stage, config, inputs; written last
    └── model.safetensors    the payload; each file is named in the manifest with its hash

A stage writes into a :func:`draft`, a hidden folder next to the destination. One rename then gives
the complete folder its name. The state that a stage needs to resume after a crash is in the
draft's ``resume`` folder, which is deleted when the stage succeeds.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from slmc import __version__
from slmc.config import StageConfig
from slmc.errors import ArtefactError
from slmc.system import check_parent, folder_made, put_folder, refuse_existing, unwritable

SCHEMA = 1
MANIFEST = "slmc.json"
Kind = Literal["dataset", "model", "engine", "report"]
WITH_ARTICLE: dict[Kind, str] = {
    "dataset": "a dataset",
    "model": "a model",
    "engine": "an engine",
    "report": "a report",
}
"""Each kind with its article, for messages."""


class Manifest(BaseModel):
    """What an artefact is and how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    kind: Kind
    stage: str
    config: dict[str, Any]
    parents: dict[str, str]
    """Role -> digest of the input artefact in that role."""
    key: str | None = None
    """Key of the step that made it; None outside of the cache."""
    versions: dict[str, str]
    seed: int | None = None
    device: str = "cpu"
    remote_code: bool = False
    """Always False: slmc runs no code of model repositories. Kept, since digests depend on it."""
    files: dict[str, str]
    """Path relative to the artefact -> SHA-256."""
    metrics: dict[str, Any] = {}


@dataclass(frozen=True)
class Artefact:
    """A sealed directory and its manifest."""

    path: Path
    manifest: Manifest

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, hence of every payload file."""
        return hashlib.sha256(canonical(self.manifest.model_dump(mode="json"))).hexdigest()

    def file(self, name: str) -> Path:
        """Path of a payload file; raises :class:`ArtefactError` if there is none."""
        if name not in self.manifest.files:
            raise ArtefactError(
                f"{self.path} has no file {name}: it is {WITH_ARTICLE[self.manifest.kind]} of "
                f"stage {self.manifest.stage}.",
                "Name an artefact of the stage that writes this file; `slmc show` shows the stage.",
            )
        return self.path / name


@dataclass
class Draft:
    """An artefact being written: payload under ``path``, state for a resume under ``resume``."""

    path: Path
    resume: Path
    out: Path
    sealed: Artefact | None = None

    def seal(
        self,
        *,
        kind: Kind,
        stage: str,
        config: StageConfig,
        inputs: Mapping[str, Artefact],
        metrics: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> Artefact:
        """Hash the payload, write the manifest last, and give the directory its real name.

        Args:
            kind: What the artefact is.
            stage: Name of the stage that made it.
            config: The stage's resolved config.
            inputs: Role -> input artefact.
            metrics: Summary numbers, each with its protocol, as JSON data.
            device: Device it was computed on.
        """
        settings = config.model_dump(mode="json")
        files = {
            str(file.relative_to(self.path)): sha256(file)
            for file in sorted(self.path.rglob("*"))
            if file.is_file()
        }
        manifest = Manifest(
            kind=kind,
            stage=stage,
            config=settings,
            parents={role: artefact.digest for role, artefact in sorted(inputs.items())},
            key=self.out.name if is_key(self.out.name) else None,
            versions=versions(config.libraries),
            seed=settings.get("seed"),
            device=device,
            files=files,
            metrics=dict(metrics or {}),
        )
        (self.path / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        for file in self.path.rglob("*"):
            _fsync(file)
        _fsync(self.path)
        os.replace(self.path, self.out)
        _fsync(self.out.parent)
        self.sealed = Artefact(self.out, manifest)
        return self.sealed


@contextmanager
def draft(out: Path) -> Iterator[Draft]:
    """Open a draft of the artefact ``out``; ``out`` appears only when the draft is sealed.

    Only one process at a time has a draft of ``out``; a second process waits. Raises
    :class:`ArtefactError` if ``out`` exists already.
    """
    partial = out.parent / f".{out.name}.partial"
    lock = out.parent / f".{out.name}.lock"
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        _refuse_existing(out)
        work = Draft(path=partial / "files", resume=partial / "resume", out=out)
        shutil.rmtree(work.path, ignore_errors=True)
        work.path.mkdir(parents=True)
        work.resume.mkdir(exist_ok=True)
        try:
            yield work
        finally:
            # After a failure keep only what the next attempt resumes from.
            shutil.rmtree(work.path, ignore_errors=True)
            if work.sealed is not None or not any(work.resume.iterdir()):
                shutil.rmtree(partial, ignore_errors=True)
                # A waiting process sees that the lock file is gone, and opens a new one.
                lock.unlink(missing_ok=True)


def load(path: Path, *, kind: Kind | None = None) -> Artefact:
    """Read the artefact at ``path`` and check every file against its hash.

    Raises:
        ArtefactError: ``path`` is not an artefact, its kind is not ``kind``, or one of its files
            is missing or has changed since it was sealed.
    """
    artefact = peek(path)
    if kind is not None and artefact.manifest.kind != kind:
        raise ArtefactError(
            f"{path} is {WITH_ARTICLE[artefact.manifest.kind]} (stage {artefact.manifest.stage}), "
            f"not {WITH_ARTICLE[kind]}.",
            f"Name {WITH_ARTICLE[kind]}; `slmc show {path}` shows what this one is.",
        )
    for name, digest in artefact.manifest.files.items():
        file = path / name
        if file.is_file() and sha256(file) == digest:
            continue
        why = "has changed since it was sealed" if file.exists() else "is missing"
        raise ArtefactError(
            f"{file} {why}.",
            "Copy the artefact again, or run the command again that made it.",
        )
    return artefact


def peek(path: Path) -> Artefact:
    """Read the manifest at ``path`` without checking the payload; raises as :func:`load`."""
    file = path / MANIFEST
    if not file.is_file():
        why = f"is not an artefact: it has no {MANIFEST}" if path.exists() else "does not exist"
        raise ArtefactError(
            f"{path} {why}.",
            "Name a directory that slmc made; the last line of its output is the path.",
        )
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (ValidationError, UnicodeDecodeError):
        raise ArtefactError(
            f"{file} is not a manifest that slmc {__version__} can read.",
            "Copy the artefact again, or install the slmc that wrote it.",
        ) from None
    if manifest.schema_version != SCHEMA:
        raise ArtefactError(
            f"{path} has artefact format {manifest.schema_version}, this slmc reads {SCHEMA}.",
            "Install the slmc that wrote it, or run its recipe again.",
        )
    unsafe = [n for n in manifest.files if Path(n).is_absolute() or ".." in Path(n).parts]
    if unsafe:
        raise ArtefactError(
            f"{file} names a file outside the artefact: {unsafe[0]}.",
            "Do not use this artefact; copy it again from where it was made.",
        )
    return Artefact(path, manifest)


def copy(artefact: Artefact, out: Path, *, force: bool = False) -> Artefact:
    """Copy ``artefact`` to ``out``, completely or not at all.

    Raises:
        ArtefactError: ``out`` exists (:func:`check_free`).
        UsageError: The operating system refuses the path.
        MissingError: The disk is full, or cannot be written.
    """
    check_free(out, force=force)
    staged = out.parent / f".{out.name}.copy-{os.getpid()}"
    try:
        with folder_made(out.parent):
            try:
                shutil.rmtree(staged, ignore_errors=True)
                _copy_files(artefact.path, staged)
                put_folder(staged, out)
            finally:
                shutil.rmtree(staged, ignore_errors=True)  # no longer there after success
    except OSError as error:
        raise unwritable(out, error) from None
    return Artefact(out, artefact.manifest)


def check_free(out: Path, *, force: bool = False) -> None:
    """Check that an artefact can be written to ``out``.

    Raises:
        ArtefactError: ``out`` is an artefact and ``force`` is False, is something else, or is a
            broken link.
        UsageError: The folder of ``out`` is a file or cannot be written to.
    """
    if out.is_symlink() and not out.exists():
        raise ArtefactError(
            f"{out} is a link to {out.readlink()}, which does not exist; it was not changed.",
            "Remove the link, or name another --out.",
        )
    _refuse_existing(out, force=force)
    check_parent(out)


def _refuse_existing(out: Path, *, force: bool = False) -> None:
    remedy = "Name another --out, or pass --force to replace an artefact."
    ours = (out / MANIFEST).is_file()
    refuse_existing(out, ArtefactError, ours=ours, replace=force, remedy=remedy)


def _copy_files(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("*")):
        if file.is_file():
            copied = target / file.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)


def is_key(name: str) -> bool:
    """Whether ``name`` has the form of a step key: 64 hexadecimal digits."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no white space, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_mb(artefact: Artefact, names: tuple[str, ...]) -> float:
    """Size in 10^6 bytes of the files whose path starts with one of ``names``."""
    return (
        sum(
            (artefact.path / f).stat().st_size
            for f in artefact.manifest.files
            if f.startswith(names)
        )
        / 1e6
    )


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Version of slmc and of each of the libraries that is installed."""
    installed = {"slmc": __version__}
    for name in libraries:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
