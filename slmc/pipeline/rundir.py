"""The folder of a run: links to its artefacts in step order, its settings and its results.

runs/movies/
├── 01-prepare -> …/objects/<key>
├── recipe.resolved.yaml    every setting
├── recipe.lock             data, models, versions and step keys (JSON)
└── metrics.json            the results
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact, is_key
from slmc.errors import UsageError
from slmc.pipeline.keys import Key
from slmc.system import folder_made, refuse_existing, write_whole

LOCK = "recipe.lock"
RESOLVED = "recipe.resolved.yaml"
LINK = re.compile(r"\d{2,}-.+")
PARTS = frozenset({"config", "versions", "fingerprint"})
OURS = frozenset({LOCK, RESOLVED, "metrics.json", "log.jsonl"})
"""Files by which the folder of an earlier run is known."""
ANOTHER = "Name another folder for the run with --out."


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    def open(self, resolved: str) -> None:
        """Make the folder, or reuse that of an earlier run.

        Args:
            resolved: The recipe with every setting written out.

        Raises:
            UsageError: The folder has other contents, or cannot be written to.
        """
        try:
            with folder_made(self.path):
                names = [entry.name for entry in self.path.iterdir()]
                ours = not names or bool(OURS & set(names))
                refuse_existing(self.path, UsageError, ours=ours, replace=True, remedy=ANOTHER)
                for name in names:
                    if LINK.fullmatch(name) and (self.path / name).is_symlink():
                        (self.path / name).unlink()
                self._write(RESOLVED, resolved)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}.", ANOTHER) from None

    def link(self, number: int, step_id: str, artefact: Artefact) -> None:
        """Link the artefact of a step under ``NN-id``."""
        link = self.path / f"{number:02d}-{step_id}"
        link.unlink(missing_ok=True)
        link.symlink_to(artefact.path.resolve())

    def keys(self) -> set[str]:
        """Keys of the steps that the folder links to, or that its lock names.

        The lock also names steps that the last run did not reach but an earlier run did; the next
        run will read them from the cache.

        Raises:
            OSError: The folder does not exist, or cannot be read.
        """
        links = [entry.path for entry in os.scandir(self.path) if entry.is_symlink()]
        named = [Path(link).readlink().name for link in links]
        named += [str(step.get("key")) for step in self.locked().values()]
        return {name for name in named if is_key(name)}

    def broken_links(self) -> list[Path]:
        """Links to artefacts that are no longer there."""
        links = (path for path in self.path.iterdir() if path.is_symlink())
        return [link for link in links if LINK.fullmatch(link.name) and not link.exists()]

    def write_lock(
        self,
        recipe: str,
        command: str,
        order: Sequence[str],
        finished: Mapping[str, tuple[Key, Artefact]],
    ) -> None:
        """Write ``recipe.lock``; the entries of steps that this run has not reached stay the same.

        Args:
            recipe: Name of the recipe.
            command: The command that runs the recipe into this folder.
            order: Ids of all its steps.
            finished: Step id -> its key and artefact.
        """
        before = self.locked()
        steps = {step_id: before[step_id] for step_id in order if step_id in before}
        for step_id, (key, artefact) in finished.items():
            steps[step_id] = {"key": key.digest, "digest": artefact.digest, "parts": key.parts}
        parts = [step["parts"] for step in steps.values()]
        lock = {
            "format": 1,
            "recipe": recipe,
            "command": command,
            "directory": str(Path.cwd()),
            "versions": {name: v for part in parts for name, v in part["versions"].items()},
            "sources": {
                step_id: step["parts"]["fingerprint"]
                for step_id, step in steps.items()
                if step["parts"]["fingerprint"]
            },
            "steps": steps,
        }
        self.write_json(LOCK, lock)

    def locked(self) -> dict[str, Any]:
        """Step id -> key, digest and parts of the last run; empty if there was none."""
        steps = self._lock().get("steps")
        if not isinstance(steps, dict):
            return {}
        return {
            step_id: step
            for step_id, step in steps.items()
            if isinstance(step, dict) and set(step.get("parts", ())) >= PARTS
        }

    def again(self, link: str) -> str | None:
        """The command that makes the artefact of a link again; None if it is not known.

        Args:
            link: Name of the link, ``NN-id``.
        """
        lock = self._lock()
        command, directory = lock.get("command"), lock.get("directory")
        if not LINK.fullmatch(link) or not isinstance(command, str):
            return None
        until = f"`{command} --until {link.partition('-')[2]}`"
        return until if directory == str(Path.cwd()) else f"{until} in {directory}"

    def _lock(self) -> dict[str, Any]:
        try:
            lock = json.loads((self.path / LOCK).read_bytes())
        except (OSError, ValueError):
            return {}
        return lock if isinstance(lock, dict) else {}

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, completely or not at all."""
        self._write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)
