"""The external inputs of an engine, for the key of the export step. Does not import torch."""

from slmc.artefact import versions
from slmc.data.sources import digest, fetch
from slmc.export.config import ExportConfig
from slmc.export.tensorrt import flavours


def fingerprint(config: ExportConfig) -> dict[str, str]:
    """Return what the engine depends on besides its settings and inputs.

    TensorRT's version and the GPU of a plan, the version of the library of an index, and the
    digests of a file of new items and of a log in which their neighbours are counted.
    """
    files = {"items": config.items, "cooccurrence": config.cooccurrence}
    digests = {name: digest(fetch(file)) for name, file in files.items() if file is not None}
    library = {} if config.index is None else versions(("faiss-cpu",))
    return flavours.fingerprint(config) | digests | library
