"""The safetensors files of a model directory: which of them count, and what they hold.

A directory may hold files that are not the model: shards of an older save, variants, adapters,
originals in another layout. Only the files of the index are read, or else ``model.safetensors``
alone. Whatever does not fit the model is refused by the names of the file and of the tensor.
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
"""Stored types whose numbers are the weights; all others need scales or a code book."""
POINTER = b"version https://git-lfs"
LAYER = "layers.0."
MISMATCH = "Download it again; its config.json and its weights do not belong together."
DAMAGED = "Download or copy the file again."
QUANTIZED = "Name a directory of float weights (bf16, fp16 or fp32), or a .gguf file."


@dataclass(frozen=True)
class Weights:
    """The tensors of a directory by name, each read from disk when it is asked for."""

    label: str
    """What messages call the model, such as ``backbone NAME``."""
    files: Mapping[str, Any]
    """Tensor -> its open file."""
    places: Mapping[str, str]
    """Tensor -> name of its file."""

    @classmethod
    @contextmanager
    def open(cls, directory: Path, label: str) -> Iterator["Weights"]:
        """Open the files that hold the model, for the duration of a ``with`` block.

        Raises:
            UsageError: There are none, one is missing, damaged or a Git LFS pointer, or one
                lacks a tensor that the index promises.
        """
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            places: dict[str, str] = {}
            for name, promised in weight_files(directory, label).items():
                shard = _opened(stack, directory / name, label, promised)
                held = set(shard.keys())
                lacking = next((tensor for tensor in promised if tensor not in held), None)
                if lacking is not None:
                    raise UsageError(
                        f"{label}: {name} lacks {lacking}, which {INDEX} says it holds.", DAMAGED
                    )
                for tensor in promised or held:
                    files[tensor], places[tensor] = shard, name
            yield cls(label, files, places)

    def prefix(self, wanted: Mapping[str, Tensor], table: str) -> str:
        """What stands before the decoder's own names, e.g. ``model.``.

        Other parts of a checkpoint, such as an audio tower, have layers too. The decoder is
        the part that holds most of the tensors in the shapes that are wanted.

        Args:
            wanted: The decoder's tensors by their own names.
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
                f"{self.label}: its weights hold no decoder layers named layers.0, layers.1 …",
                "Name a decoder LLM such as Llama, Qwen, Gemma, Mistral or Phi.",
            )
        return best

    def check(self, name: str, shape: torch.Size) -> None:
        """Refuse a tensor that is missing, quantized or of another shape; nothing is read."""
        if name not in self.files:
            where = f" ({', '.join(sorted(set(self.places.values())))})"
            raise UsageError(f"{self.label}: its weights lack {name}{where}.", MISMATCH)
        stored = self.files[name].get_slice(name)
        kind = stored.get_dtype()
        if kind not in FLOATS:
            raise UsageError(
                f"{self.label}: {name} in {self.places[name]} is of type {kind}, not a float: "
                "its weights are quantized.",
                QUANTIZED,
            )
        if list(stored.get_shape()) != list(shape):
            raise UsageError(
                f"{self.label}: {name} in {self.places[name]} has the shape "
                f"{list(stored.get_shape())}, and its config.json asks for {list(shape)}.",
                MISMATCH,
            )

    def read(self, name: str, shape: torch.Size) -> Tensor:
        """A whole tensor of that shape.

        Raises:
            UsageError: It is missing, quantized, of another shape, or not finite.
        """
        self.check(name, shape)
        tensor: Tensor = self.files[name].get_tensor(name)
        self._check_finite(name, tensor)
        return tensor

    def rows(self, name: str, width: int, index: slice | list[int]) -> Tensor:
        """Rows of a matrix of that width, float32; the others are not read.

        Raises:
            UsageError: As :meth:`read`.
        """
        height = self._shape(name)[0] if self._shape(name) else 0
        self.check(name, torch.Size([height, width]))
        stored = self.files[name].get_slice(name)
        if isinstance(index, slice):
            rows: Tensor = stored[index].float()
        else:
            rows = torch.stack([stored[i] for i in index]).float()
        self._check_finite(name, rows)
        return rows

    def refuse_others(self, prefixes: tuple[str, ...], known: frozenset[str]) -> None:
        """Refuse tensors that the model has no place for: it would not be the stored one.

        Args:
            prefixes: Beginnings of the names that count.
            known: Names that the model has.
        """
        others = (n for n in sorted(self.files) if n.startswith(prefixes) and n not in known)
        # Older checkpoints store frequencies, which every decoder computes by itself.
        other = next((n for n in others if not n.endswith("inv_freq")), None)
        if other is not None:
            raise UsageError(
                f"{self.label}: its weights hold {other} in {self.places[other]}, for which a "
                "decoder of its config.json has no place.",
                "Name a directory of float weights whose config.json is their own.",
            )

    def _shape(self, name: str) -> list[int]:
        return list(self.files[name].get_slice(name).get_shape()) if name in self.files else []

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not tensor.numel():
            return
        # Both are NaN where one number is; ten times as fast as isfinite() of each.
        lowest, highest = (value.item() for value in torch.aminmax(tensor))
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            what = "NaN" if math.isnan(lowest) else "infinite numbers"
            raise UsageError(
                f"{self.label}: {name} in {self.places[name]} holds {what}.",
                "Download it again, or make it again: its training has probably diverged.",
            )


def weight_files(directory: Path, label: str) -> dict[str, list[str]]:
    """Names of the files that hold the model -> tensors that the index promises in each.

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
            f"{label}: it holds {others[0]}, but neither {SINGLE} nor {INDEX}.",
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
        raise UsageError(f"{label}: {INDEX} is no index of weights.", DAMAGED) from None
    promised: dict[str, list[str]] = {}
    for tensor, name in sorted(pairs):
        promised.setdefault(name, []).append(tensor)
    return promised


def _opened(stack: ExitStack, file: Path, label: str, promised: list[str]) -> Any:
    first = f", which holds {promised[0]}" if promised else ""
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
        reason = _cut_short(file) or str(error).splitlines()[0]
        raise UsageError(f"{label}: {file.name} is damaged: {reason}.", DAMAGED) from None


def _cut_short(file: Path) -> str | None:
    """Which tensor of a file reaches beyond its end, if its header can be read."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        end = file.stat().st_size - 8 - size
        ends = {name: at["data_offsets"][1] for name, at in header.items() if name[:2] != "__"}
    except (OSError, OverflowError, MemoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    beyond = sorted((at, name) for name, at in ends.items() if at > end)
    return f"it is cut short within {beyond[0][1]}" if beyond else None
