"""Which device computes, and in which precision: chosen by itself unless told."""

from dataclasses import dataclass

import torch

from slmc.errors import MissingError


@dataclass(frozen=True)
class Placement:
    """Where training computes and in which precision its matrix products run."""

    device: torch.device
    dtype: torch.dtype

    @property
    def mixed(self) -> bool:
        """Whether products run below the float32 of the weights, under autocast."""
        return self.dtype is not torch.float32


def choose(device: str = "auto", dtype: str = "auto") -> Placement:
    """The placement for the options ``--device`` and ``--dtype``.

    ``auto`` takes the first GPU if there is one, and bf16 where the hardware multiplies it
    (compute capability 8.0, AVX512-BF16, AMX); elsewhere float32.

    Raises:
        MissingError: A GPU is asked for that is not there.
    """
    where = torch.device(device if device != "auto" else _best_device())
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise MissingError(
            f"device {device}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices.",
            "Name --device cpu, or install a CUDA build of torch and the driver "
            "(`slmc doctor` tells what is there).",
        )
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return Placement(where, names[resolve_dtype(device, dtype)])


def resolve_dtype(device: str = "auto", dtype: str = "auto") -> str:
    """``fp32`` or ``bf16``: what ``auto`` means on this machine, anything else as it is."""
    if dtype != "auto":
        return dtype
    kind = torch.device(device if device != "auto" else _best_device()).type
    return "bf16" if _multiplies_bf16(kind) else "fp32"


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _multiplies_bf16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    flags = torch.backends.cpu.get_cpu_capability()
    if flags not in ("AVX512", "AVX512_BF16", "AMX"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
