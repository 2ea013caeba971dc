"""Models whose weights are stored as integers, in the form of compressed-tensors.

They load with plain ``from_pretrained`` wherever compressed-tensors is installed. slmc opens
them as float models of the same values, which whatever comes next can take as any other.
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
"""Modules that draw a bar whether anybody looks or not."""
METRIC = "METRIC"
"""A level that llm-compressor logs on, and makes only together with its own log on stdout."""
LIBRARIES = ("compressed_tensors", "llmcompressor")
SILENCE = {"LLM_COMPRESSOR_LOG_DISABLED": "true"}
"""Keeps llm-compressor from putting its own log on stdout when it is imported."""

log = logging.getLogger("slmc.quantize")


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a model's ``config.json`` says that weights or item table are integers."""
    return "quantization_config" in config or config.get("item_bits") is not None


def installed(module: str) -> bool:
    """Whether a library can be imported."""
    return find_spec(module) is not None


def require(module: str = "compressed_tensors", *, otherwise: str = "") -> None:
    """See that a library of the extra is installed, without importing it.

    Raises:
        MissingError: It is not; ``otherwise`` says another way out.
    """
    if not installed(module):
        raise MissingError(
            f"quantize: {module} is not installed.",
            f"Install with `pip install 'slmc[quantize]'`{otherwise}.",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep these libraries off the terminal: what they log goes to ``slmc.quantize``, debug."""
    _route()
    before = {name: os.environ.get(name) for name in SILENCE}
    os.environ.update(SILENCE)
    drawn = [importlib.import_module(name) for name in BARS]
    bars: list[Any] = [module.tqdm for module in drawn]
    for module, bar in zip(drawn, bars, strict=True):
        module.__dict__["tqdm"] = partial(_unseen, bar)
    try:
        yield
    finally:
        for module, bar in zip(drawn, bars, strict=True):
            module.__dict__["tqdm"] = bar
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _unseen(bar: Any, *args: Any, **settings: Any) -> Any:
    """A bar that is not drawn, whatever its caller says."""
    return bar(*args, **settings | {"disable": True})


def _route() -> None:
    """Hand what the libraries say through loguru on to logging, once."""
    from loguru import logger

    with contextlib.suppress(ValueError):
        logger.remove(0)  # loguru's own handler, which writes to stderr
    try:
        logger.level(METRIC)
    except ValueError:
        logger.level(METRIC, no=38)
    for name in LIBRARIES:
        logger.enable(name)
    if not _routed:
        number = logger.add(_hand_on, filter=_from_libraries, format="{message}")
        _routed.append(number)


_routed: list[int] = []
"""Number of our handler, once there is one."""


def _from_libraries(record: Any) -> bool:
    return str(record["name"]).split(".")[0] in LIBRARIES


def _hand_on(message: Any) -> None:
    log.debug("%s", str(message).rstrip())


def as_floats(model: PreTrainedModel) -> None:
    """Turn the compressed layers of a loaded model into plain ones of the same values."""
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
    made = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
    made.weight = nn.Parameter(module.weight.detach())
    if module.bias is not None:
        made.bias = nn.Parameter(module.bias.detach())
    return made
