"""Random recommenders with outlier activations, as in LLMs; settings and marks of tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.sequential import Finished, Method
from slmc.distill.student import fresh
from slmc.model import backbone, quantized
from slmc.model.recommender import SequentialRecommender

ITEMS, WIDTH, HISTORY = 60, 32, 12
GPTQ = Method("gptq", group_size=16, symmetric=True, act_order=True)
RTN = Method("rtn", group_size=16, symmetric=True, act_order=False)
needs_gptq = pytest.mark.skipif(
    not quantized.installed("llmcompressor"), reason="the extra slmc[quantize] is not installed"
)
needs_storage = pytest.mark.skipif(
    not quantized.installed("compressed_tensors"),
    reason="the extra slmc[quantize] is not installed",
)
GROUP = 16
"""Inputs that share a scale: divides every layer of the shared student."""


def build(kind: str, kv_heads: int) -> SequentialRecommender:
    """Two layers; some item dimensions are far larger than others."""
    torch.manual_seed(0)
    items = torch.randn(ITEMS + 1, WIDTH) * torch.logspace(0, -1.5, WIDTH)
    items[0] = 0
    shape = f"layers=2&hidden=64&heads=4&kv_heads={kv_heads}&intermediate=96&head_dim=16"
    model = fresh(backbone.load(f"random://{kind}?{shape}"), items, history=HISTORY)
    return model.eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, ITEMS + 1, (48, HISTORY), generator=generator)
    ids[:8, :6] = 0
    return list(ids.split(16))


def nothing_finished(folder: Path) -> Finished:
    return Finished(folder, "test")


def linears(model: SequentialRecommender) -> list[str]:
    return [n for n, m in model.backbone.layers.named_modules() if isinstance(m, torch.nn.Linear)]


def config(**settings: Any) -> QuantizeConfig:
    return QuantizeConfig(**{"group_size": GROUP, "method": "rtn", "calibration": 24} | settings)


def stop(*_: Any, **__: Any) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt
