"""Files and folders: errors of the operating system in two lines, and complete writes."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from slmc.errors import MissingError, SlmcError, UsageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LACKING = FULL | {errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
"""Error codes of a machine that lacks something."""
MISNAMED = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)
"""Error codes that another path avoids."""
FULL_IN_TEXT = re.compile(
    r"No space left on device|Disk quota exceeded|StorageFull|os error (27|28)\b"
)
"""Messages of libraries with their own errors for a full disk (safetensors, polars)."""


def refused(error: BaseException) -> SlmcError | None:
    """The slmc error for an error of the operating system; None for any other error.

    Args:
        error: The exception; its causes are searched too.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in LACKING | MISNAMED:
            return unwritable(chain.filename, chain)
        if FULL_IN_TEXT.search(str(chain)):
            return unwritable(None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        chain = chain.__cause__ or chain.__context__
    return None


def unwritable(path: object, error: OSError) -> SlmcError:
    """The slmc error for a path that cannot be read or written.

    Args:
        path: The path; None if it is not known.
        error: The error of the operating system.
    """
    reason = error.strerror or str(error)
    what = f"{path}: {reason}." if path is not None else f"{reason}."
    if error.errno in FULL:
        return MissingError(what, "Free some space, or name a folder on another disk.")
    if error.errno in LACKING:
        return MissingError(what, "Fix that, and run the same command again.")
    return UsageError(what, "Name a path in a folder that exists and can be read and written.")


@contextlib.contextmanager
def folder_made(path: Path) -> Iterator[None]:
    """Make a folder and its parents; if the body fails, remove the new folders that are empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def refuse_existing(
    path: Path, error: type[UsageError], *, ours: bool, replace: bool, remedy: str
) -> None:
    """Check that slmc may write to ``path``: it never overwrites what it did not make.

    Args:
        path: A file or a folder.
        error: What to raise.
        ours: Whether slmc made what is at ``path``.
        replace: Whether to replace it in that case.
        remedy: Second line of the error.

    Raises:
        UsageError: Something is at ``path``, and slmc did not make it or must not replace it.
    """
    if path.exists() and not (ours and replace):
        why = "exists already" if ours else "exists and was not made by slmc"
        raise error(f"{path} {why}; it was not changed.", remedy)


def check_parent(out: Path) -> None:
    """Check that a folder ``out`` can be made where it is named.

    Raises:
        UsageError: The folder of ``out`` is a file or cannot be written to.
    """
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(
            f"{out} cannot be written: {above} is not a folder.", "Name another --out."
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"{out} cannot be written: no permission to write to the folder {above}.",
            "Name another --out.",
        )


def put_folder(staged: Path, out: Path) -> None:
    """Rename the folder ``staged`` to ``out``; a folder or link at ``out`` is replaced."""
    if not out.exists():
        os.replace(staged, out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    os.replace(out, old)
    try:
        os.replace(staged, out)
    except OSError:
        os.replace(old, out)
        raise
    if old.is_symlink():
        old.unlink()  # keep the target of the link
    else:
        shutil.rmtree(old)


def write_whole(file: Path, text: str) -> None:
    """Write a text file completely or not at all; an old file stays until the new one is complete.

    Links are followed; a pipe or a device such as ``/dev/stdout`` is written to directly.

    Raises:
        OSError: It cannot be written; ``filename`` is ``file``.
    """
    to = file.resolve()
    direct = to.exists() and not to.is_file()
    staged = to if direct else to.with_name(f".{to.name}-{os.getpid()}")
    try:
        staged.write_text(text, encoding="utf-8")
        if not direct:
            os.replace(staged, to)
    except OSError as error:
        if not direct:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from None
