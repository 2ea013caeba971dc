"""Random recommenders whose inputs are as uneven as those of an LLM, and their calibration."""

from pathlib import Path

import torch
from torch import Tensor

from slmc.compress.sequential import Finished, Method
from slmc.distill.student import fresh
from slmc.model import backbone
from slmc.model.recommender import SequentialRecommender

ITEMS, WIDTH, HISTORY = 60, 32, 12
GPTQ = Method("gptq", group_size=16, symmetric=True, act_order=True)
RTN = Method("rtn", group_size=16, symmetric=True, act_order=False)


def build(kind: str, kv_heads: int) -> SequentialRecommender:
    """Two layers; some item dimensions are far larger than others."""
    torch.manual_seed(0)
    items = torch.randn(ITEMS + 1, WIDTH) * torch.logspace(0, -1.5, WIDTH)
    items[0] = 0
    shape = f"layers=2&hidden=64&heads=4&kv_heads={kv_heads}&intermediate=96&head_dim=16"
    made = fresh(backbone.load(f"random://{kind}?{shape}"), items, history=HISTORY, dropout=0.0)
    return made.eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, ITEMS + 1, (48, HISTORY), generator=generator)
    ids[:8, :6] = 0
    return list(ids.split(16))


def nothing_finished(folder: Path) -> Finished:
    return Finished(folder, "test")


def linears(model: SequentialRecommender) -> list[str]:
    return [n for n, m in model.backbone.layers.named_modules() if isinstance(m, torch.nn.Linear)]
