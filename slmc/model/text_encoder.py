"""Vectors of texts from a sentence encoder or an LLM: computed once, then read from the cache.

A text's vector is the mean of the hidden states of its tokens. Of a causal model a middle layer is
read: the mean over all tokens is far better than the last token alone (LLM2Vec, arXiv 2404.05961),
and the last layers predict tokens. Letters: N texts, D width of the encoder.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from slmc import cache
from slmc.errors import UsageError
from slmc.model.silence import silence_transformers
from slmc.model.sources import digest_of, locate

log = logging.getLogger("slmc.model")

TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
TOKENS = 4096
"""Tokens of a batch, padding included."""
LONGEST = 256
"""Tokens of a text, at most: what stands further behind says little of an item."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder."""

    name: str
    """A directory, hub id or GGUF file."""
    revision: str | None
    """Commit, tag or branch of a hub id."""
    layer: int | None
    """Hidden layer to use, 0 for the token embeddings; None uses the last one of a sentence
    encoder and the middle one of a causal model."""
    digest: str
    """Digest of its files; other files under this name are refused."""

    @classmethod
    def of(cls, name: str, revision: str | None, layer: int | None) -> Self:
        """Return the encoder with the current digest of its files."""
        return cls(name, revision, layer, digest_of(name, revision))


def text_vectors(
    texts: Sequence[str], encoder: Encoder, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the vectors ``[N, D]`` of texts, float32, from the cache if they are there.

    Args:
        texts: Texts that are not empty.
        encoder: The encoder; it needs a tokenizer.
        device: Device of the encoder.

    Raises:
        UsageError: The encoder cannot be opened, has no tokenizer, or has fewer layers.
        MissingError: It has to be downloaded, and the download fails.
    """
    known = hashlib.sha256(repr((encoder.digest, encoder.layer, LONGEST)).encode())
    for text in texts:
        known.update(hashlib.sha256(text.encode()).digest())
    file = cache.root() / "texts" / f"{known.hexdigest()}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.is_file():
            directory = locate(encoder.name, encoder.revision)
            # Opening a model may draw random numbers: a run must not depend on what is cached.
            with torch.random.fork_rng():
                vectors = _computed(texts, directory, encoder, device)
            staged = file.with_name(f".{file.name}.partial")
            try:
                save_file({"vectors": vectors}, staged)
                os.replace(staged, file)
            finally:
                staged.unlink(missing_ok=True)
    return load_file(file)["vectors"]


def _computed(
    texts: Sequence[str],
    directory: Path,
    encoder: Encoder,
    device: torch.device | str,
) -> Tensor:
    tokenizer, model = _opened(directory, encoder.name)
    model.to(device)
    depth, layer = int(model.config.num_hidden_layers), encoder.layer
    if layer is None:
        layer = depth // 2 if _is_causal(model) else depth
    if layer > depth:
        raise UsageError(
            f"encoder {encoder.name}: it has {depth} layers, so there is no layer {layer}.",
            f"Choose a layer from 0 to {depth}.",
        )
    if isinstance(getattr(model, "layers", None), torch.nn.ModuleList):
        # One more than is used: the last of these states goes through the final norm.
        model.layers = model.layers[: layer + 1]
    log.info("encoding %d texts with %s, layer %d of %d", len(texts), encoder.name, layer, depth)
    vectors: Tensor | None = None
    done = 0
    for places, tokens in _batches(texts, tokenizer):
        tokens = {name: value.to(device) for name, value in tokens.items()}
        with torch.inference_mode():
            states = model(**tokens, output_hidden_states=True).hidden_states[layer]
        kept = tokens["attention_mask"][..., None].to(states.dtype)
        means = ((states * kept).sum(dim=1) / kept.sum(dim=1)).float().cpu()
        if vectors is None:
            vectors = torch.empty(len(texts), means.shape[1])
        vectors[places] = means
        done += len(places)
        progress = {"task": "texts", "done": done, "total": len(texts)}
        log.debug("encoded %d of %d texts", done, len(texts), extra={"progress": progress})
    if vectors is None or not vectors.isfinite().all():
        raise UsageError(
            f"encoder {encoder.name}: it returns vectors that are not finite.",
            "Name another encoder, or another layer of it.",
        )
    return vectors


def _opened(directory: Path, encoder: str) -> tuple[Any, Any]:
    """The tokenizer and the model, in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer

    # Without these files transformers makes an empty tokenizer, which knows no word.
    if not any(file for name in TOKENIZERS for file in directory.glob(name)):
        raise UsageError(
            f"encoder {encoder}: it has no tokenizer.",
            "Name a directory or hub id with tokenizer.json, tokenizer.model or a vocabulary.",
        )
    try:
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory)
            model = AutoModel.from_pretrained(
                directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    # The exception depends on which library reads the broken file.
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"encoder {encoder}: transformers cannot open it ({line}).",
            "Name a directory or hub id with config.json, safetensors weights and a tokenizer.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model.eval()


def _is_causal(model: Any) -> bool:
    """Return whether the model has causal attention."""
    return any(getattr(one, "is_causal", False) for one in model.modules())


def _batches(texts: Sequence[str], tokenizer: Any) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield batches of texts of similar length: their places and their padded tokens."""
    encoded = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(texts)), key=lambda place: len(encoded[place]))
    places: list[int] = []
    for place in order:
        length = max(1, len(encoded[place]))
        if places and length * (len(places) + 1) > TOKENS:
            yield places, _padded([encoded[one] for one in places], tokenizer)
            places = []
        places.append(place)
    if places:
        yield places, _padded([encoded[one] for one in places], tokenizer)


def _padded(rows: list[list[int]], tokenizer: Any) -> dict[str, Tensor]:
    longest = max(1, max(map(len, rows)))
    pad = tokenizer.pad_token_id or 0
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        tokens = row or [pad]  # a text without any token
        ids[number, : len(tokens)] = torch.tensor(tokens)
        mask[number, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}
