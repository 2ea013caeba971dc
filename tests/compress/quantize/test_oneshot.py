"""Our loop over layers against the oneshot of llm-compressor, with the same solver."""

from pathlib import Path
from typing import Any

import pytest
from quantizable import GPTQ, batches, build, linears, nothing_finished
from torch.utils.data import DataLoader

from slmc.compress.quantize.sequential import quantize_layers
from slmc.model import quantized
from slmc.model.recommender import SequentialRecommender

OTHERS = 0.02
"""Share of weights that may differ: sums in another order change the rounding of ties."""


class Processor:
    """Required by oneshot, but unused."""

    def save_pretrained(self, folder: Any) -> None:
        """Write nothing."""


@pytest.mark.filterwarnings("ignore")  # warnings of oneshot
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_layers_come_out_as_from_oneshot(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("llmcompressor", reason="the extra slmc[quantize] is not installed")
    ours = build(kind, 2)
    ours.save_pretrained(tmp_path / "model")
    bits = {f"backbone.layers.{name}": 4 for name in linears(ours)}
    quantize_layers(ours, bits, batches(), GPTQ, nothing_finished(tmp_path))
    theirs = SequentialRecommender.from_pretrained(tmp_path / "model").eval()
    with quantized.quiet():
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier

        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": GPTQ.group_size,
        }
        recipe = GPTQModifier(
            config_groups={"g": {"targets": ["Linear"], "weights": weights}},
            ignore=["input_proj", "output_proj"],
            actorder="static",
        )
        oneshot(
            model=theirs,
            dataset=DataLoader([{"item_ids": ids} for ids in batches()], batch_size=None),
            recipe=recipe,
            num_calibration_samples=48,
            pipeline="sequential",
            processor=Processor(),
        )
    for name in bits:
        one, other = (m.get_parameter(f"{name}.weight").detach() for m in (ours, theirs))
        assert ((one - other).abs() > 1e-6).float().mean() < OTHERS, name
