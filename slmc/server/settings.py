"""The settings of a server. No FastAPI here."""

import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from slmc.artefact import is_key
from slmc.errors import MissingError, UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIBRARIES = ("fastapi", "uvicorn", "httptools", "prometheus_client")
TOKEN = "SLMC_TOKEN"
"""Environment variable of the token."""


@dataclass(frozen=True)
class Settings:
    """What the server allows, and how long it waits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    threads: int | None = None
    """Cores to use, each by one call of the engine; None: all."""
    batch: int = 32
    """Largest number of histories that requests share in one call."""
    wait_ms: float = 2.0
    """How long a request waits for others to share its call, while another call is computed."""
    queue: int = 256
    """Requests of an engine that are computed or wait for it; further ones get 429."""
    deadline_ms: float = 2000.0
    """Time for an answer; then 504, and what was not begun is not computed."""
    body_bytes: int = 2**20
    """Largest body of a request."""
    request_s: float = 10.0
    """Seconds within which a request must arrive, and within which its answer must be read."""
    drain_s: float = 8.0
    """Seconds for open requests after SIGTERM."""
    watch: bool = False
    """Reload an engine when its path leads to another one."""
    token: bytes | None = None
    """What ``Authorization: Bearer`` must have; None: nothing is asked for."""


def check_extra() -> None:
    """Raise :class:`MissingError` if a library of the extra ``serve`` is missing."""
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingError(
                f"{name} cannot be imported ({error}).",
                "Install it with `pip install 'slmc[serve]'`.",
            ) from None


def named(arguments: list[str]) -> dict[str, Path]:
    """Name -> path of the engines of a command line, each ``PATH`` or ``NAME=PATH``.

    Without a name, an engine has the name of its folder.

    Raises:
        UsageError: A name is not valid, or two engines have the same.
    """
    paths: dict[str, Path] = {}
    for text in arguments:
        name, equals, rest = text.partition("=")
        if not text.strip() or (equals and not rest.strip()):
            raise UsageError(f"ENGINE: {text!r} names no path.", "Pass PATH or NAME=PATH.")
        path = Path(rest if equals and not Path(text).exists() else text)
        if path == Path(text):
            folder = path.expanduser().absolute().name
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder[:12] if is_key(folder) else folder)
            name = name.strip("-._")[:64]
        if not NAME.fullmatch(name):
            raise UsageError(
                f"ENGINE: {name!r} cannot be the name of an engine.",
                "Name it with letters, digits, '.', '_' and '-', as in movies=PATH.",
            )
        if name in paths:
            raise UsageError(
                f"ENGINE: two engines have the name {name}: {paths[name]} and {path}.",
                f"Name them, as in a={paths[name]} b={path}.",
            )
        paths[name] = path
    return paths


def read_token(file: Path | None) -> bytes | None:
    """The token in a file, or else of the environment; None if there is none.

    Raises:
        UsageError: The file cannot be read, or the token is empty or not one line of ASCII.
    """
    if file is None and TOKEN not in os.environ:
        return None
    where = TOKEN if file is None else str(file)
    try:
        text = os.environ[TOKEN] if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text"
        raise UsageError(f"--token-file {file}: {why}.", "Name a file with the token.") from None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{where}: the token is empty, or not one word of ASCII.",
            "Write a token into it, for example the output of `openssl rand -hex 32`.",
        )
    return token.encode()
