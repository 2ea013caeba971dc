"""What building and running a plan share: its graph's file, its profiles, TensorRT's logger."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import Flavour

TYPED = "tensorrt/model.onnx"
"""The graph that a plan is built from, in an engine's folder."""

log = logging.getLogger("slmc.export")


@dataclass(frozen=True)
class Profile:
    """Shapes that a plan is tuned for: from one item up to the largest, best at that."""

    batch: int
    length: int


@cache
def logger_of(flavour: Flavour) -> Any:
    """The one logger of a flavour in this process; ``errors`` holds its error messages."""
    module = flavours.builder(flavour)

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(message)
            log.debug("tensorrt: %s", message)

    return Logger()
