"""The state of a training run in one safetensors file, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slmc.training.schedule import Decay


@dataclass
class Progress:
    """The state of a run, without its tensors."""

    step: int = 0
    """Optimizer steps so far."""
    best: float = float("-inf")
    """Best validation so far, signed so that larger is better."""
    best_step: int = 0
    """Step of that validation; 0 before the first."""
    decay: Decay | None = None
    """The learning-rate decay; None during the constant phase."""
    stopped: Literal["plateau", "epochs", "minutes", "like"] | None = None
    """Why the constant phase ended."""
    seconds: float = 0.0
    """Seconds of training so far, validation included."""
    validating: float = 0.0
    """Seconds of validation so far."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum of each loss term over the steps since the last validation."""
    summed: int = 0
    """Number of those steps."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per validation."""

    @classmethod
    def read(cls, text: str) -> "Progress":
        """Parse the JSON of a checkpoint."""
        stored = json.loads(text)
        decay = stored.pop("decay")
        return cls(**stored, decay=decay and Decay(**decay))

    def add(self, terms: Mapping[str, float]) -> None:
        """Count an optimizer step and its loss terms."""
        self.step += 1
        self.summed += 1
        for term, value in terms.items():
            self.sums[term] = self.sums.get(term, 0.0) + value

    def pop_means(self) -> dict[str, float]:
        """Return the mean loss terms since the last call, and start new sums."""
        means = {term: total / self.summed for term, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


class Checkpoint:
    """Parameters, optimizer, random state and best weights of a run, and its :class:`Progress`."""

    def __init__(
        self,
        file: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Keep references to the trained ``parameters`` and their ``optimizer``."""
        self.file = file
        self.parameters = parameters
        self.optimizer = optimizer
        self.best: dict[str, Tensor] = {}

    def exists(self) -> bool:
        """Return whether there is a run to resume."""
        return self.file.is_file()

    def remember_best(self) -> None:
        """Copy the current weights as the best ones."""
        self.best = {name: p.detach().clone() for name, p in self.parameters.items()}

    def restore_best(self) -> None:
        """Load the best weights into the model, if any were remembered."""
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.parameters[name].copy_(tensor)

    def save(self, progress: Progress) -> None:
        """Replace the checkpoint by the current state."""
        tensors = {f"parameter.{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        tensors["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        staged = self.file.with_suffix(".partial")
        contiguous = {n: t.contiguous() for n, t in tensors.items()}
        save_file(contiguous, staged, metadata={"progress": json.dumps(asdict(progress))})
        os.replace(staged, self.file)

    def load(self) -> Progress:
        """Restore the tensors in place and return the rest of the state."""
        with safe_open(self.file, framework="pt") as stored, torch.no_grad():
            for key in stored.keys():  # noqa: SIM118 - safe_open is not a mapping
                tensor = stored.get_tensor(key)
                if key == "rng":
                    torch.set_rng_state(tensor)
                elif key == "rng.cuda":
                    torch.cuda.set_rng_state(tensor)
                elif key.startswith("parameter."):
                    self.parameters[key.removeprefix("parameter.")].copy_(tensor)
                elif key.startswith("best."):
                    name = key.removeprefix("best.")
                    self.best[name] = tensor.to(self.parameters[name].device)
                else:
                    state, _, name = key.partition("/")
                    parameter = self.parameters[name]
                    where = "cpu" if state == "step" and not self._fused() else parameter.device
                    self.optimizer.state[parameter][state] = tensor.to(where)
            return Progress.read(stored.metadata()["progress"])

    def _fused(self) -> bool:
        return bool(self.optimizer.param_groups[0].get("fused"))
