"""Paths of the cache: finished artefacts, downloads, converted backbones."""

import os
from pathlib import Path

import platformdirs


def root() -> Path:
    """``$SLMC_CACHE``, or ``slmc`` in the user's cache directory."""
    named = os.environ.get("SLMC_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("slmc"))


def objects() -> Path:
    """Folder of the finished artefacts, each under the key of its step."""
    return root() / "objects"


def runs() -> Path:
    """Folder with one file for each run that has used the cache."""
    return root() / "runs"


def offline() -> bool:
    """Whether slmc must not use the network: ``--offline``, or ``HF_HUB_OFFLINE=1``."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
