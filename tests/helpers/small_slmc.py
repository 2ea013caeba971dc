"""``slmc`` as the tests of the documentation call it: the same commands, made small."""

import sys
from pathlib import Path

from slmc.commands.cli import main

ONE_EPOCH = ["--epochs", "1"]


def small(arguments: list[str]) -> list[str]:
    """The arguments of a call with those that make it quick."""
    command, *rest = arguments
    if command == "run":
        # A smoke run has a folder of its own; the commands after it name the usual one.
        return [*arguments, "--smoke", "--out", f"runs/{Path(rest[0]).stem}"]
    return [*arguments, *ONE_EPOCH * (command in ("teach", "distill"))]


sys.argv[1:] = small(sys.argv[1:])
main()
