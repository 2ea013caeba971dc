"""The device and the precision of the computation: detected unless they are set."""

from dataclasses import dataclass

import torch

from slmc import processes
from slmc.errors import MissingError


@dataclass(frozen=True)
class Placement:
    """Device of training, and precision of its matmuls."""

    device: torch.device
    dtype: torch.dtype

    @property
    def mixed(self) -> bool:
        """Whether matmuls run under autocast, in less than the float32 of the weights."""
        return self.dtype is not torch.float32


def choose(device: str = "auto", dtype: str = "auto") -> Placement:
    """Return the placement for the options ``--device`` and ``--dtype``.

    ``auto`` is the first GPU if there is one, and bf16 if the hardware supports it (compute
    capability 8.0, AVX512-BF16, AMX), else float32. Of several processes on a machine with GPUs
    each has its own.

    Raises:
        MissingError: The requested GPU does not exist.
    """
    where = torch.device(device if device != "auto" else _best_device())
    if where.type == "cuda" and processes.count() > 1:
        where = torch.device("cuda", processes.local_rank())  # one GPU per process
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise MissingError(
            f"device {device}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices.",
            "Name --device cpu, or install a CUDA build of torch and the driver "
            "(`slmc doctor` shows what is installed).",
        )
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return Placement(where, names[resolve_dtype(device, dtype)])


def resolve_dtype(device: str = "auto", dtype: str = "auto") -> str:
    """Return ``dtype``, with ``auto`` resolved to ``fp32`` or ``bf16`` for this machine."""
    if dtype != "auto":
        return dtype
    kind = torch.device(device if device != "auto" else _best_device()).type
    return "bf16" if _supports_bf16(kind) else "fp32"


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _supports_bf16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    flags = torch.backends.cpu.get_cpu_capability()
    if flags not in ("AVX512", "AVX512_BF16", "AMX"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
