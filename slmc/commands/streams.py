"""Standard output and error of a process, kept from deciding what a command comes to.

A reader that has seen enough (``slmc validate … | head -1``) closes its end: what is still to be
said is dropped, and the exit code is what the command made of it. A result that cannot be written
(``> /dev/full``) is an error of its own. The log on standard error is never a reason to fail.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from slmc.errors import MissingError

CLOSED = (errno.EPIPE, errno.ESHUTDOWN)
"""What a pipe says when nobody reads it any more."""


class Guarded:
    """A text stream that outlives its reader.

    The first write that fails turns the stream to the null device; the rest of what is said goes
    there too.
    """

    def __init__(self, stream: IO[str], *, holds_result: bool) -> None:
        """Guard ``stream``; where it ``holds_result``, raise if that cannot be written."""
        self._stream, self._holds_result = stream, holds_result

    def write(self, text: str) -> int:
        """Write text; returns its length.

        Raises:
            MissingError: It holds the result, somebody reads it, and it cannot be written.
        """
        self._kept(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is held back; raises as :meth:`write`."""
        self._kept(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)

    def _kept(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._to_nowhere()
            if self._holds_result and error.errno not in CLOSED:
                raise MissingError(
                    f"the result cannot be written to standard output: {error.strerror}.",
                    "Send it to a file or a pipe that takes it, and run the same command again.",
                ) from None

    def _to_nowhere(self) -> None:
        # The stream keeps what it could not write, and tries again when Python ends.
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self._stream.fileno())


def guard() -> None:
    """Guard the streams of this process; one that is closed (``>&-``) is the null device."""
    for name, holds_result in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name)
        if stream is None:
            # Lives as long as the process.
            stream = open(os.devnull, "w")  # noqa: PTH123, SIM115
        setattr(sys, name, Guarded(stream, holds_result=holds_result))
