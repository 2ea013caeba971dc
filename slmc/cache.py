"""Where slmc keeps what can be made again: downloads, converted backbones, finished artefacts."""

import os
from pathlib import Path

import platformdirs


def root() -> Path:
    """``$SLMC_CACHE``, or ``slmc`` in the user's cache directory."""
    named = os.environ.get("SLMC_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("slmc"))


def objects() -> Path:
    """The finished artefacts, each under the key of its step."""
    return root() / "objects"


def runs() -> Path:
    """The folders of all runs that have used the cache, a file each."""
    return root() / "runs"


def offline() -> bool:
    """Whether the network must be left alone: ``--offline``, or ``HF_HUB_OFFLINE=1``."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
