"""Tiny text encoders with random weights, saved as a user's directory would be."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

WORDS = ("soap", "red", "blue", "nail", "film", "cream", "a", "b", "c", "1", "2", "3")
SIZES = {"vocab_size": len(WORDS) + 2, "hidden_size": 32, "intermediate_size": 64}


def save(folder: Path, kind: str = "bert") -> Path:
    """An encoder of two layers, ``bert`` or ``llama`` (a causal one)."""
    torch.manual_seed(0)
    shape = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertModel(BertConfig(**shape)) if kind == "bert" else LlamaModel(LlamaConfig(**shape))
    model.save_pretrained(folder)
    known = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder
