"""Models with integer weights in the format of compressed-tensors.

``from_pretrained`` loads them if compressed-tensors is installed. slmc dequantizes them when it
loads them, so that later stages see a float model.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from slmc.errors import MissingError

BARS = (
    "compressed_tensors.quantization.lifecycle.apply",
    "compressed_tensors.compressors.model_compressors.model_compressor",
    "compressed_tensors.offload.dispatch",
)
"""Modules that always draw progress bars."""
METRIC = "METRIC"
"""A log level of llm-compressor, which it defines only if it logs to stdout itself."""
LIBRARIES = ("compressed_tensors", "llmcompressor")
SILENCE = {"LLM_COMPRESSOR_LOG_DISABLED": "true"}
"""Keeps llm-compressor from logging to stdout when it is imported."""

log = logging.getLogger("slmc.quantize")


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Return whether a model's ``config.json`` describes integer weights or item table."""
    return "quantization_config" in config or config.get("item_bits") is not None


def installed(module: str) -> bool:
    """Return whether a library can be imported."""
    return find_spec(module) is not None


def require(module: str = "compressed_tensors", *, otherwise: str = "") -> None:
    """Check that a library of the extra is installed, without importing it.

    Raises:
        MissingError: It is not; ``otherwise`` is appended to the remedy.
    """
    if not installed(module):
        raise MissingError(
            f"quantize: {module} is not installed.",
            f"Install with `pip install 'slmc[quantize]'`{otherwise}.",
        )


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Turn off terminal output of these libraries; log it to ``slmc.quantize`` at level debug."""
    _forward_logs()
    before = {name: os.environ.get(name) for name in SILENCE}
    os.environ.update(SILENCE)
    modules = [importlib.import_module(name) for name in BARS]
    bars: list[Any] = [module.tqdm for module in modules]
    for module, bar in zip(modules, bars, strict=True):
        module.__dict__["tqdm"] = partial(_hidden_bar, bar)
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.__dict__["tqdm"] = bar
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _hidden_bar(bar: Any, *args: Any, **settings: Any) -> Any:
    """Create a progress bar that is not drawn."""
    return bar(*args, **settings | {"disable": True})


def _forward_logs() -> None:
    """Forward the loguru messages of the libraries to logging."""
    from loguru import logger

    with contextlib.suppress(ValueError):
        logger.remove(0)  # loguru's own handler, which writes to stderr
    try:
        logger.level(METRIC)
    except ValueError:
        logger.level(METRIC, no=38)
    for name in LIBRARIES:
        logger.enable(name)
    if not _handlers:
        number = logger.add(_forward, filter=_from_libraries, format="{message}")
        _handlers.append(number)


_handlers: list[int] = []
"""Id of our loguru handler, once it is added."""


def _from_libraries(record: Any) -> bool:
    return str(record["name"]).split(".")[0] in LIBRARIES


def _forward(message: Any) -> None:
    log.debug("%s", str(message).rstrip())


def as_floats(model: PreTrainedModel) -> None:
    """Replace the compressed layers of a loaded model by dequantized ``nn.Linear`` layers."""
    from compressed_tensors.offload import remove_dispatch

    loaded: Any = model
    loaded.hf_quantizer.compressor.decompress_model(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme"):
            model.set_submodule(name, _plain(module))
    remove_dispatch(model)  # wraps each module's forward, which torch.export cannot trace
    del loaded.config.quantization_config
    loaded.hf_quantizer, loaded.is_quantized = None, False


def _plain(module: nn.Linear) -> nn.Linear:
    outputs, inputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(module.weight.detach())
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach())
    return linear
