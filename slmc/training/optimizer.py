"""The AdamW optimizer of every training stage."""

from collections.abc import Sequence
from typing import Any

import torch

from slmc.config import TrainConfig

BETA1 = 0.9


def adamw(
    groups: Sequence[dict[str, Any]], config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) over parameter groups, each with its peak ``lr``.

    ``config.weight_decay`` applies to matrices, not to vectors (norms, biases).
    """
    return torch.optim.AdamW(
        _decayed(groups, config.weight_decay),
        betas=(BETA1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )


def _decayed(groups: Sequence[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """Split each group into its matrices and its vectors."""
    split = []
    for group in groups:
        for matrices in (True, False):
            params = [p for p in group["params"] if (p.ndim >= 2) is matrices]
            if params:
                split.append(group | {"params": params, "weight_decay": decay if matrices else 0.0})
    return split
