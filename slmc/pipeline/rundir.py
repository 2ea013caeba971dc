"""The folder of a run: links to its artefacts in step order, and what was run.

runs/movies/
├── 01-prepare -> …/objects/<key>
├── recipe.resolved.yaml    every setting
├── recipe.lock             data, models, versions and step keys (JSON)
└── metrics.json            the numbers
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.pipeline.keys import Key
from slmc.system import folder_made, write_whole

LOCK = "recipe.lock"
RESOLVED = "recipe.resolved.yaml"
LINK = re.compile(r"\d{2,}-.+")
PARTS = frozenset({"config", "versions", "fingerprint"})
OURS = frozenset({LOCK, RESOLVED, "metrics.json", "log.jsonl"})


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    def open(self, resolved: str) -> None:
        """Make the folder, or take over that of an earlier run.

        Args:
            resolved: The recipe with every setting written out.

        Raises:
            UsageError: Something else lies there, or the folder cannot be written.
        """
        try:
            with folder_made(self.path):
                names = [entry.name for entry in self.path.iterdir()]
                if names and not OURS & set(names):
                    raise UsageError(
                        f"{self.path} holds files that no run has put there.",
                        "Name another folder for the run with --out.",
                    )
                for name in names:
                    if LINK.fullmatch(name) and (self.path / name).is_symlink():
                        (self.path / name).unlink()
                self._write(RESOLVED, resolved)
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be written: {error.strerror}.",
                "Name another folder for the run with --out.",
            ) from None

    def link(self, number: int, step_id: str, artefact: Artefact) -> None:
        """Link the artefact of a step under ``NN-id``."""
        link = self.path / f"{number:02d}-{step_id}"
        link.unlink(missing_ok=True)
        link.symlink_to(artefact.path.resolve())

    def write_lock(
        self, recipe: str, order: Sequence[str], made: Mapping[str, tuple[Key, Artefact]]
    ) -> None:
        """Write ``recipe.lock``; of steps that this run has not reached, the last entry stays.

        Args:
            recipe: Name of the recipe.
            order: Ids of all its steps.
            made: Step id -> its key and artefact, so far.
        """
        before = self.locked()
        steps = {step_id: before[step_id] for step_id in order if step_id in before}
        for step_id, (key, artefact) in made.items():
            steps[step_id] = {"key": key.digest, "digest": artefact.digest, "parts": key.parts}
        parts = [step["parts"] for step in steps.values()]
        lock = {
            "format": 1,
            "recipe": recipe,
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
        try:
            steps = json.loads((self.path / LOCK).read_bytes())["steps"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if not isinstance(steps, dict):
            return {}
        return {
            step_id: step
            for step_id, step in steps.items()
            if isinstance(step, dict) and set(step.get("parts", ())) >= PARTS
        }

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self._write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)
