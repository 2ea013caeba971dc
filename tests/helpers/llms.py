"""Small LLMs with random weights, saved as directories."""

from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from slmc.model import random_models
from slmc.model.silence import silence_transformers


def save_llama(out: Path, **options: Any) -> Path:
    """Save a Llama of width 32; ``options`` are its layers, its vocabulary and other fields."""
    config = random_models.llm_config("llama", **{"hidden": 32, "intermediate": 64} | options)
    with silence_transformers():
        LlamaForCausalLM(config).save_pretrained(out)
    return out
