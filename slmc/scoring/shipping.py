"""A model or an engine for another machine: its files, and where they are put there."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from slmc import artefact as artefacts
from slmc import cache
from slmc.artefact import MANIFEST, Artefact
from slmc.errors import ArtefactError


@dataclass(frozen=True)
class Shipped:
    """An artefact that another machine opens, by its path or from its files."""

    path: Path
    digest: str
    files: dict[str, bytes]
    """Content of each file; empty if the path can be read there too."""

    @classmethod
    def of(cls, artefact: Artefact, *, with_files: bool) -> Self:
        """Take an artefact."""
        path = artefact.path.resolve()
        names = [MANIFEST, *artefact.manifest.files] if with_files else []
        return cls(path, artefact.digest, {name: (path / name).read_bytes() for name in names})

    def open(self) -> Artefact:
        """The artefact on this machine: at its path, or in the cache, into which it is unpacked.

        Raises:
            ArtefactError: It is not there and was not shipped, or its hashes do not fit.
        """
        unpacked = cache.root() / "shipped" / self.digest
        for folder in (self.path, unpacked):
            if (folder / MANIFEST).is_file():
                found = artefacts.load(folder)
                if found.digest == self.digest:
                    return found
        if not self.files:
            raise ArtefactError(
                f"{self.path} cannot be read on this machine, or is another artefact here.",
                "Name a folder that all machines share.",
            )
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=unpacked.parent, prefix=".partial-"))
        for name, content in self.files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(content)
        try:
            os.replace(staged, unpacked)
        except OSError:  # another process of this machine was faster
            shutil.rmtree(staged)
        return artefacts.load(unpacked)
