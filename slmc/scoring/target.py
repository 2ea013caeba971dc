"""Where the result of a job is written: a local file, or a URL by way of a file in the cache."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock

from slmc import cache
from slmc.errors import MissingError, UsageError


@dataclass(frozen=True)
class Target:
    """The output of a job."""

    output: str
    """As the user has named it."""
    file: Path
    """The local file that is written; that of a URL is uploaded and removed."""
    force: bool
    """Whether an existing output is replaced."""

    @classmethod
    def of(cls, output: str, force: bool) -> Self:
        """The place of an output other than standard output.

        Raises:
            UsageError: Its folder does not exist, or it exists itself and is not to be replaced.
        """
        target = cls(output, _file(output), force)
        target.refuse_existing()
        return target

    @property
    def remote(self) -> bool:
        """Whether it is a URL."""
        return "://" in self.output and not self.output.startswith("file://")

    def refuse_existing(self) -> None:
        """Raise ``UsageError`` if the output exists and is not to be replaced."""
        if self.file.is_dir():
            raise UsageError(f"--output: {self.file} is a folder.", "Name a file.")
        exists = _remote_exists(self.output) if self.remote else self.file.exists()
        if exists and not self.force:
            raise UsageError(
                f"{self.output} exists already; it was not changed.",
                "Name another --output, or pass --force to replace it.",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One job at a time writes an output; a second one waits, and finds it there."""
        lock = self.file.with_name(f".{self.file.name}.lock")
        with FileLock(lock):
            try:
                self.refuse_existing()
                yield
            finally:
                lock.unlink(missing_ok=True)

    def publish(self) -> None:
        """Upload the written file if the output is a URL."""
        if self.remote:
            _upload(self.file, self.output)
            self.file.unlink()


def _file(output: str) -> Path:
    if output.startswith("file://"):
        return Path(output.removeprefix("file://"))
    if "://" in output:
        name = hashlib.sha256(output.encode()).hexdigest()[:16]
        folder = cache.root() / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}{Path(output).suffix}"
    file = Path(output).expanduser()
    if not file.absolute().parent.is_dir():
        raise UsageError(
            f"--output: the folder {file.parent} does not exist.", "Make it, or name another one."
        )
    return file


def _remote_exists(url: str) -> bool:
    with _remote_errors(url):
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        return bool(system.exists(path))


def _upload(file: Path, url: str) -> None:
    with _remote_errors(url):
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        system.put_file(str(file), path)


@contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    """Errors of a remote file system, which have no common base class, in two lines."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingError(
            f"{url} cannot be written: {lines[0]}",
            "Check the address, the network, your credentials and the package of its protocol. "
            "What was scored is kept.",
        ) from error
