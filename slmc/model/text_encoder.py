"""Vectors of texts from a sentence encoder or an LLM: computed once, then read from the cache.

A text's vector is the mean of the hidden states of its tokens. Of a causal model a middle layer is
read: the mean over all tokens is far better than the last token alone (LLM2Vec, arXiv 2404.05961),
and the last layers predict tokens. Letters: N texts, D width of the encoder.
"""

import hashlib
import logging
import math
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
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Depths of the layers that ``encoder_layer: auto`` compares."""


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
    return layer_vectors(texts, encoder, [encoder.layer], device)[encoder.layer]


def layer_vectors(
    texts: Sequence[str],
    encoder: Encoder,
    layers: Sequence[int | None],
    device: torch.device | str = "cpu",
) -> dict[int | None, Tensor]:
    """Return the vectors of several layers: those not in the cache are computed in one pass.

    Args:
        texts: Texts that are not empty.
        encoder: The encoder; its ``layer`` is not used.
        layers: Layers, as :attr:`Encoder.layer`.
        device: Device of the encoder.

    Raises:
        UsageError, MissingError: As :func:`text_vectors`.
    """
    folder = cache.root() / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    files = {layer: folder / f"{_key(encoder, layer, digests)}.safetensors" for layer in layers}
    # One lock for all layers: two processes never wait for each other.
    with FileLock(folder / f".{_key(encoder, 'layers', digests)}.lock"):
        missing = [layer for layer, file in files.items() if not file.is_file()]
        if missing:
            directory = locate(encoder.name, encoder.revision)
            # Opening a model may draw random numbers: a run must not depend on what is cached.
            with torch.random.fork_rng():
                computed = _computed(texts, directory, encoder.name, missing, device)
            for layer in missing:
                _store(computed.pop(layer), files[layer])
    return {layer: load_file(file)["vectors"] for layer, file in files.items()}


def candidate_layers(encoder: Encoder) -> tuple[list[int], int]:
    """Return layers to choose from, spread over the depth of an encoder, and its depth.

    Raises:
        UsageError: The encoder cannot be opened.
        MissingError: It has to be downloaded, and the download fails.
    """
    depth = _depth(locate(encoder.name, encoder.revision), encoder.name)
    return sorted({math.ceil(share * depth) for share in SHARES}), depth


def check(name: str, layer: int | None = None) -> None:
    """Check that a local directory can encode texts, without its weights; others are not checked.

    Args:
        name: A directory, hub id or GGUF file.
        layer: Layer that must exist.

    Raises:
        UsageError: It has no readable config, no tokenizer, or fewer layers.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        return
    depth = _depth(directory, name)
    _check_tokenizer(directory, name)
    _check_layer(layer or 0, depth, name)


def _key(encoder: Encoder, layer: int | str | None, digests: Sequence[bytes]) -> str:
    known = hashlib.sha256(repr((encoder.digest, layer, LONGEST)).encode())
    for digest in digests:
        known.update(digest)
    return known.hexdigest()


def _store(vectors: Tensor, file: Path) -> None:
    staged = file.with_name(f".{file.name}.partial")
    try:
        save_file({"vectors": vectors}, staged)
        os.replace(staged, file)
    finally:
        staged.unlink(missing_ok=True)


def _computed(
    texts: Sequence[str],
    directory: Path,
    name: str,
    layers: Sequence[int | None],
    device: torch.device | str,
) -> dict[int | None, Tensor]:
    tokenizer, model = _opened(directory, name)
    model.to(device)
    depth = int(model.config.num_hidden_layers)
    usual = depth // 2 if _is_causal(model) else depth
    read = {layer: usual if layer is None else layer for layer in layers}
    deepest = max(read.values())
    _check_layer(deepest, depth, name)
    if isinstance(getattr(model, "layers", None), torch.nn.ModuleList):
        # One more than is used: the last of these states goes through the final norm.
        model.layers = model.layers[: deepest + 1]
    shown = ", ".join(map(str, sorted(set(read.values()))))
    log.info("encoding %d texts with %s, layer %s of %d", len(texts), name, shown, depth)
    vectors: dict[int | None, Tensor] = {}
    done = 0
    for places, tokens in _batches(texts, tokenizer):
        tokens = {key: value.to(device) for key, value in tokens.items()}
        with torch.inference_mode():
            states = model(**tokens, output_hidden_states=True).hidden_states
        for layer, number in read.items():
            means = _mean(states[number], tokens["attention_mask"])
            if layer not in vectors:
                vectors[layer] = torch.empty(len(texts), means.shape[1])
            vectors[layer][places] = means
        done += len(places)
        progress = {"task": "texts", "done": done, "total": len(texts)}
        log.debug("encoded %d of %d texts", done, len(texts), extra={"progress": progress})
    if not vectors or not all(one.isfinite().all() for one in vectors.values()):
        raise UsageError(
            f"encoder {name}: it returns vectors that are not finite.",
            "Name another encoder, or another layer of it.",
        )
    return vectors


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean ``[B, D]`` of the states of real tokens ``[B, T, D]``, float32."""
    kept = mask[..., None].to(states.dtype)
    return ((states * kept).sum(dim=1) / kept.sum(dim=1)).float().cpu()


def _depth(directory: Path, encoder: str) -> int:
    from transformers import AutoConfig

    try:
        with silence_transformers():
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return int(config.num_hidden_layers)
    # As in _opened.
    except Exception as error:
        raise _unreadable(encoder, error) from error


def _unreadable(encoder: str, error: Exception) -> UsageError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UsageError(
        f"encoder {encoder}: transformers cannot open it ({line}).",
        "Name a directory or hub id with config.json, safetensors weights and a tokenizer.",
    )


def _opened(directory: Path, encoder: str) -> tuple[Any, Any]:
    """The tokenizer and the model, in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer

    _check_tokenizer(directory, encoder)
    try:
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory)
            model = AutoModel.from_pretrained(
                directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    # The exception depends on which library reads the broken file.
    except Exception as error:
        raise _unreadable(encoder, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model.eval()


def _check_tokenizer(directory: Path, encoder: str) -> None:
    # Without these files transformers makes an empty tokenizer, which knows no word.
    if not any(file for name in TOKENIZERS for file in directory.glob(name)):
        raise UsageError(
            f"encoder {encoder}: it has no tokenizer.",
            "Name a directory or hub id with tokenizer.json, tokenizer.model or a vocabulary.",
        )


def _check_layer(layer: int, depth: int, encoder: str) -> None:
    if layer > depth:
        raise UsageError(
            f"encoder {encoder}: it has {depth} layers, so there is no layer {layer}.",
            f"Choose a layer from 0 to {depth}.",
        )


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
