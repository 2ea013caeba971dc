"""Where a model's weights come from, and whether they are still those when training begins.

A recommender is built around weights that were read from files: an LLM's layers, SASRec's item
table, a teacher's or a pruned student's layers. Nothing on the way may change them: transformers
initialises every module that is not marked as loaded, which once replaced an LLM by noise.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from slmc.errors import BrokenRunError
from slmc.model.weights import Weights

ADAPTED = {"base_model.model.": "", ".base_layer.": "."}
"""What peft adds to the names of the weights that it leaves as they are."""


@dataclass(frozen=True)
class Origin:
    """The tensors that a model has to begin with, by the hash of their float32 values."""

    name: str
    """What they were read from, for the message."""
    digests: Mapping[str, str]
    """Name of a tensor of the model -> SHA-256."""

    @classmethod
    def of_files(cls, directory: Path, leaving_out: str | None = None) -> Self:
        """From the floating-point tensors in the weight files of a directory.

        Args:
            directory: A model in Hugging Face form.
            leaving_out: Beginning of the names that do not count.
        """
        digests = {}
        with Weights.open(directory, str(directory)) as stored:
            for key, file in stored.files.items():
                tensor = file.get_tensor(key)
                left_out = leaving_out is not None and key.startswith(leaving_out)
                if tensor.is_floating_point() and not left_out:
                    digests[key] = digest(tensor)
        return cls(str(directory), digests)

    def joined(self, prefix: str, tensors: Mapping[str, Tensor]) -> Self:
        """This origin's names behind ``prefix``, and further tensors by their own names."""
        digests = {prefix + key: value for key, value in self.digests.items()}
        more = {key: digest(tensor) for key, tensor in tensors.items()}
        return type(self)(self.name, digests | more)

    def check(self, model: nn.Module) -> None:
        """Compare the model's tensors with the source's, those that it has.

        Raises:
            BrokenRunError: One differs, or the model has none of them.
        """
        known = {_plain(name): tensor for name, tensor in model.state_dict().items()}
        shared = [name for name in self.digests if name in known]
        changed = [name for name in shared if digest(known[name]) != self.digests[name]]
        if changed or not shared:
            raise BrokenRunError(
                f"the model does not begin with the weights of {self.name}: {len(changed)} of "
                f"{len(shared)} tensors differ, the first is {min(changed, default='none')}.",
                "This is a defect of slmc: report it with the recipe; nothing was trained.",
            )


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and of its values as float32."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()


def _plain(name: str) -> str:
    for added, plain in ADAPTED.items():
        name = name.replace(added, plain)
    return name
