"""Early exits: heads that predict the next item from the states after an earlier block.

The multiple supervision of SLMRec (arXiv 2405.17890, section 4) trains them; stored with a student,
each makes a shallower recommender. Letters: ``H`` hidden width, ``d`` item width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slmc.artefact import Artefact
from slmc.errors import UsageError

FILE = "exit_heads.safetensors"


@dataclass(frozen=True)
class ExitHeads:
    """The heads of a recommender, by block, from the first on."""

    ends: tuple[int, ...]
    """Last layer of each block that has a head, counted from 0."""
    weights: tuple[Tensor, ...]
    """``[d, H]`` for each of them; a user vector is ``weight @ state``, of the state before any
    norm."""

    def save(self, folder: Path) -> None:
        """Write the heads into the folder of a model."""
        tensors = {
            f"layer.{end}.weight": weight.detach().cpu().contiguous()
            for end, weight in zip(self.ends, self.weights, strict=True)
        }
        save_file(tensors, folder / FILE)

    @classmethod
    def open(cls, model: Artefact) -> Self:
        """Read the heads of a model; raises ``UsageError`` if it has none."""
        if FILE not in model.manifest.files:
            raise UsageError(
                f"exit_block: {model.path} has no heads of its blocks.",
                "Distil it with losses.supervise and keep_heads: true.",
            )
        with safe_open(model.file(FILE), framework="pt") as file:
            names = {int(name.split(".")[1]): name for name in file.keys()}  # noqa: SIM118
            ends = tuple(sorted(names))
            return cls(ends, tuple(file.get_tensor(names[end]) for end in ends))

    def end_of(self, block: int) -> int:
        """Return the last layer of a block, counted from 1; raises ``UsageError`` beyond them."""
        if block > len(self.ends):
            raise UsageError(
                f"exit_block: {block} is more than the {len(self.ends)} blocks that have a head.",
                f"Set at most {len(self.ends)}; the last block is the model itself.",
            )
        return self.ends[block - 1]


def save(heads: Sequence[nn.Module], ends: Sequence[int], folder: Path) -> None:
    """Write linear heads, one for each of the first blocks, into the folder of a model.

    Args:
        heads: ``nn.Linear`` without bias, ``H -> d``.
        ends: Last layer of each block, the last block included.
        folder: Of the model.
    """
    weights = tuple(head.get_parameter("weight") for head in heads)
    ExitHeads(tuple(ends[: len(weights)]), weights).save(folder)
