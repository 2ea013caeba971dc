"""Read the safetensors files of a model directory.

A directory may contain other files: shards of an older save, variants, adapters, originals in
another layout. Only the files of the index are read, or ``model.safetensors`` if there is no
index. Errors name the file and the tensor.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slmc.errors import UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of float weights; weights of other types need scales or a code book."""
POINTER = b"version https://git-lfs"
LAYER = "layers.0."
MISMATCH = "Download it again; its config.json does not match its weights."
DAMAGED = "Download or copy the file again."
QUANTIZED = "Name a directory of float weights (bf16, fp16 or fp32), or a .gguf file."


@dataclass(frozen=True)
class Weights:
    """The tensors of a directory by name; each is read from disk when it is needed."""

    label: str
    """Name of the model in messages, such as ``backbone NAME``."""
    files: Mapping[str, Any]
    """Tensor -> its open file."""
    places: Mapping[str, str]
    """Tensor -> name of its file."""

    @classmethod
    @contextmanager
    def open(cls, directory: Path, label: str) -> Iterator["Weights"]:
        """Open the files of the model, for the duration of a ``with`` block.

        Raises:
            UsageError: There are no files, or one is missing, damaged, a Git LFS pointer, or lacks
                a tensor of the index.
        """
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            places: dict[str, str] = {}
            for name, listed in weight_files(directory, label).items():
                shard = _open_file(stack, directory / name, label, listed)
                held = set(shard.keys())
                lacking = next((tensor for tensor in listed if tensor not in held), None)
                if lacking is not None:
                    raise UsageError(
                        f"{label}: {name} lacks {lacking}, which {INDEX} lists in it.", DAMAGED
                    )
                for tensor in listed or held:
                    files[tensor], places[tensor] = shard, name
            yield cls(label, files, places)

    def prefix(self, wanted: Mapping[str, Tensor], table: str) -> str:
        """Return the prefix of the decoder's tensor names, e.g. ``model.``.

        Other parts of a checkpoint, such as an audio tower, have layers too. The decoder is
        the part with most of the expected tensors in the right shapes.

        Args:
            wanted: The decoder's tensors by their names without prefix.
            table: Name of its token table, which other parts lack.

        Raises:
            UsageError: There are no decoder layers.
        """
        names = {name[: name.index(LAYER)] for name in self.files if LAYER in name}
        shapes = {name: list(tensor.shape) for name, tensor in wanted.items()}

        def fits(prefix: str) -> tuple[int, int, bool, int]:
            there = [name for name in shapes if prefix + name in self.files]
            same = [name for name in there if self._shape(prefix + name) == shapes[name]]
            return len(same), len(there), prefix + table in self.files, -len(prefix)

        best = max(sorted(names), key=fits, default=None)
        if best is None or not fits(best)[1]:
            raise UsageError(
                f"{self.label}: its weights have no decoder layers named layers.0, layers.1 …",
                "Name a decoder LLM such as Llama, Qwen, Gemma, Mistral or Phi.",
            )
        return best

    def check(self, name: str, shape: torch.Size) -> None:
        """Refuse a tensor that is missing, quantized or of another shape, without reading it."""
        if name not in self.files:
            where = f" ({', '.join(sorted(set(self.places.values())))})"
            raise UsageError(f"{self.label}: its weights lack {name}{where}.", MISMATCH)
        tensor = self.files[name].get_slice(name)
        kind = tensor.get_dtype()
        if kind not in FLOATS:
            raise UsageError(
                f"{self.label}: {name} in {self.places[name]} is of type {kind}, not a float: "
                "its weights are quantized.",
                QUANTIZED,
            )
        if list(tensor.get_shape()) != list(shape):
            raise UsageError(
                f"{self.label}: {name} in {self.places[name]} has the shape "
                f"{list(tensor.get_shape())}, but its config.json requires {list(shape)}.",
                MISMATCH,
            )

    def read(self, name: str, shape: torch.Size) -> Tensor:
        """Read a whole tensor of a shape.

        Raises:
            UsageError: It is missing, quantized, of another shape, or not finite.
        """
        self.check(name, shape)
        tensor: Tensor = self.files[name].get_tensor(name)
        self._check_finite(name, tensor)
        return tensor

    def rows(self, name: str, width: int, index: slice | list[int]) -> Tensor:
        """Read only some rows of a matrix of a width, as float32.

        Raises:
            UsageError: As :meth:`read`.
        """
        height = self._shape(name)[0] if self._shape(name) else 0
        self.check(name, torch.Size([height, width]))
        matrix = self.files[name].get_slice(name)
        if isinstance(index, slice):
            rows: Tensor = matrix[index].float()
        else:
            rows = torch.stack([matrix[i] for i in index]).float()
        self._check_finite(name, rows)
        return rows

    def refuse_others(self, prefixes: tuple[str, ...], known: frozenset[str]) -> None:
        """Refuse tensors that the model does not have: it would differ from the stored one.

        Args:
            prefixes: Prefixes of the tensors that are checked.
            known: Names of the model's tensors.
        """
        others = (n for n in sorted(self.files) if n.startswith(prefixes) and n not in known)
        # Older checkpoints contain rotary frequencies, which decoders compute themselves.
        other = next((n for n in others if not n.endswith("inv_freq")), None)
        if other is not None:
            raise UsageError(
                f"{self.label}: its weights contain {other} in {self.places[other]}, which a "
                "decoder of its config.json does not have.",
                "Name a directory of float weights with the config.json that belongs to them.",
            )

    def _shape(self, name: str) -> list[int]:
        return list(self.files[name].get_slice(name).get_shape()) if name in self.files else []

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not tensor.numel():
            return
        # aminmax() is NaN if a number is, and ten times faster than isfinite() of each number.
        lowest, highest = (value.item() for value in torch.aminmax(tensor))
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            what = "NaN" if math.isnan(lowest) else "infinite numbers"
            raise UsageError(
                f"{self.label}: {name} in {self.places[name]} holds {what}.",
                "Download it again, or train it again: its training has probably diverged.",
            )


def weight_files(directory: Path, label: str) -> dict[str, list[str]]:
    """Return the files of the model, and the tensors that the index lists in each.

    Raises:
        UsageError: There are no such files, or the index cannot be read.
    """
    if (directory / INDEX).is_file():
        return _indexed(directory, label)
    if (directory / SINGLE).is_file():
        return {SINGLE: []}
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if others:
        raise UsageError(
            f"{label}: it contains {others[0]}, but neither {SINGLE} nor {INDEX}.",
            f"Download {INDEX} and all its files, or save the model with `save_pretrained`.",
        )
    raise UsageError(
        f"{label}: it has no .safetensors weights, and pickled ones are not opened.",
        "Convert it once: load it with transformers and `save_pretrained` it.",
    )


def _indexed(directory: Path, label: str) -> dict[str, list[str]]:
    try:
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        pairs = [(str(tensor), Path(name).name) for tensor, name in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UsageError(f"{label}: {INDEX} is not an index of weights.", DAMAGED) from None
    listed: dict[str, list[str]] = {}
    for tensor, name in sorted(pairs):
        listed.setdefault(name, []).append(tensor)
    return listed


def _open_file(stack: ExitStack, file: Path, label: str, listed: list[str]) -> Any:
    first = f", which holds {listed[0]}" if listed else ""
    if not file.is_file():
        raise UsageError(f"{label}: {file.name} is missing{first}.", "Download it again.")
    try:
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise UsageError(
                    f"{label}: {file.name} is a Git LFS pointer and not the weights{first}.",
                    "Run `git lfs pull` in its repository, or download it from the hub.",
                )
        return stack.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        reason = _truncation(file) or str(error).splitlines()[0]
        raise UsageError(f"{label}: {file.name} is damaged: {reason}.", DAMAGED) from None


def _truncation(file: Path) -> str | None:
    """Return which tensor of a file is incomplete, if its header can be read."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        end = file.stat().st_size - 8 - size
        ends = {name: at["data_offsets"][1] for name, at in header.items() if name[:2] != "__"}
    except (OSError, OverflowError, MemoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    beyond = sorted((at, name) for name, at in ends.items() if at > end)
    return f"it ends within {beyond[0][1]}" if beyond else None
