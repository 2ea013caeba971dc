"""The external inputs of an engine, for the key of the export step. Does not import torch."""

from slmc.data.sources import digest, fetch
from slmc.export.config import ExportConfig
from slmc.export.tensorrt import flavours


def fingerprint(config: ExportConfig) -> dict[str, str]:
    """Return TensorRT's version and the GPU of a plan, and the digest of a file of new items."""
    items = {} if config.items is None else {"items": digest(fetch(config.items))}
    return flavours.fingerprint(config) | items
