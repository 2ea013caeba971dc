"""Standard output and error, so that a closed pipe does not change the exit code.

If the reader closes the pipe (``slmc validate … | head -1``), the rest of the output is dropped and
the command keeps its exit code. A result that cannot be written (``> /dev/full``) is an error. A
log that cannot be written to standard error is not.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from slmc.errors import MissingError

CLOSED = (errno.EPIPE, errno.ESHUTDOWN)
"""Error codes of a pipe whose reader has closed it."""


class Guarded:
    """A text stream that continues after its reader has gone.

    After the first failed write, the stream writes to the null device.
    """

    def __init__(self, stream: IO[str], *, holds_result: bool) -> None:
        """Guard ``stream``; with ``holds_result``, raise if the result cannot be written."""
        self._stream, self._holds_result = stream, holds_result

    def write(self, text: str) -> int:
        """Write text; returns its length.

        Raises:
            MissingError: The stream holds the result, has a reader, and cannot be written to.
        """
        self._kept(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write the buffer; raises as :meth:`write`."""
        self._kept(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        """All other attributes are those of the stream."""
        return getattr(self._stream, name)

    def _kept(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._to_nowhere()
            if self._holds_result and error.errno not in CLOSED:
                raise MissingError(
                    f"the result cannot be written to standard output: {error.strerror}.",
                    "Redirect it to a writable file or pipe, and run the same command again.",
                ) from None

    def _to_nowhere(self) -> None:
        # The stream keeps what it could not write, and Python writes it again at exit.
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self._stream.fileno())


def guard() -> None:
    """Guard the streams of this process; replace a closed one (``>&-``) by the null device."""
    for name, holds_result in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name)
        if stream is None:
            # Stays open until the process ends.
            stream = open(os.devnull, "w")  # noqa: PTH123, SIM115
        setattr(sys, name, Guarded(stream, holds_result=holds_result))
