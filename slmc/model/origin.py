"""Check that training begins with the weights that were read from files.

A recommender is built from the layers of an LLM, the item table of a SASRec, or the layers of a
teacher or a pruned student. transformers initialises every module that is not marked as loaded,
which once replaced the weights of an LLM by noise; this check would find it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from slmc.errors import BrokenRunError
from slmc.model.layers import renumbered
from slmc.model.weights import Weights

ADAPTED = {"base_model.model.": "", ".base_layer.": "."}
"""Parts that peft adds to the names of weights that it does not change."""


@dataclass(frozen=True)
class Origin:
    """Hashes of the float32 values of the tensors with which training must begin."""

    name: str
    """Where they were read from, for the message."""
    digests: Mapping[str, str]
    """Name of a tensor of the model -> SHA-256."""

    @classmethod
    def of_files(cls, directory: Path, excluded: str | None = None) -> Self:
        """Hash the floating-point tensors in the weight files of a directory.

        Args:
            directory: A model in the format of Hugging Face.
            excluded: Prefix of the names of tensors that are not hashed.
        """
        digests = {}
        with Weights.open(directory, str(directory)) as stored:
            for key, file in stored.files.items():
                tensor = file.get_tensor(key)
                is_excluded = excluded is not None and key.startswith(excluded)
                if tensor.is_floating_point() and not is_excluded:
                    digests[key] = digest(tensor)
        return cls(str(directory), digests)

    def joined(self, prefix: str, tensors: Mapping[str, Tensor]) -> Self:
        """Return an origin with ``prefix`` before these names, and with further tensors."""
        digests = {prefix + key: value for key, value in self.digests.items()}
        more = {key: digest(tensor) for key, tensor in tensors.items()}
        return type(self)(self.name, digests | more)

    def keeping(self, layers: Sequence[int]) -> Self:
        """Return the origin of a model that has only these decoder layers."""
        return type(self)(self.name, renumbered(self.digests, layers))

    def check(self, model: nn.Module) -> None:
        """Compare the tensors that the model shares with its source.

        Raises:
            BrokenRunError: A tensor differs, or they share none.
        """
        known = {_name_without_adapter(name): tensor for name, tensor in model.state_dict().items()}
        shared = [name for name in self.digests if name in known]
        changed = [name for name in shared if digest(known[name]) != self.digests[name]]
        if changed or not shared:
            raise BrokenRunError(
                f"the model does not start with the weights of {self.name}: {len(changed)} of "
                f"{len(shared)} tensors differ, the first is {min(changed, default='none')}.",
                "This is a bug in slmc: report it with the recipe; nothing was trained.",
            )


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's shape and of its values as float32."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()


def _name_without_adapter(name: str) -> str:
    for added, plain in ADAPTED.items():
        name = name.replace(added, plain)
    return name
