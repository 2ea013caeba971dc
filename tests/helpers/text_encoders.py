"""Tiny text encoders with random weights, as a user saves them; a log with titles."""

from pathlib import Path

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from slmc.artefact import Artefact
from slmc.data.config import ItemTable, PrepareConfig
from slmc.data.prepare import prepare

WORDS = ("soap", "red", "blue", "nail", "film", "cream", "a", "b", "c", "1", "2", "3")
SIZES = {"vocab_size": len(WORDS) + 2, "hidden_size": 32, "intermediate_size": 64}


def save(folder: Path, kind: str = "bert", layers: int = 2) -> Path:
    """An encoder of few layers, ``bert`` or ``llama`` (a causal one)."""
    torch.manual_seed(0)
    shape = {**SIZES, "num_hidden_layers": layers, "num_attention_heads": 4}
    model = BertModel(BertConfig(**shape)) if kind == "bert" else LlamaModel(LlamaConfig(**shape))
    model.save_pretrained(folder)
    known = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


def titled(log: Path, folder: Path) -> Artefact:
    """The dataset of a log whose items have titles; their table is ``folder / "items.csv"``."""
    items = pl.read_csv(log, infer_schema=False)["item_id"].unique().sort()
    titles = [f"{WORDS[n % 7]} {WORDS[n // 7 % 7]} {WORDS[n % 5 + 7]}" for n in range(len(items))]
    pl.DataFrame({"item_id": items, "title": titles}).write_csv(folder / "items.csv")
    table = ItemTable(source=str(folder / "items.csv"))
    return prepare(PrepareConfig(source=str(log), core=1, items=table), {}, folder / "data")
