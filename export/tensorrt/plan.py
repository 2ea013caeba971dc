"""What building and running a plan share: its files, its profiles and TensorRT's logger."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import Flavour

PLAN, PLAN_GRAPH = "tensorrt/model.plan", "tensorrt/model.onnx"
"""In an engine's folder: the plan, and the graph from which it is built."""

log = logging.getLogger("slmc.export")


@dataclass(frozen=True)
class Profile:
    """Shapes that a plan supports: up to this batch and length, tuned for the largest."""

    batch: int
    length: int


class Logger(Protocol):
    """TensorRT's logger, which also collects error messages."""

    errors: list[str]


@cache
def logger_of(flavour: Flavour) -> Logger:
    """Return the logger of a flavour; there is one per process."""
    module = flavours.module_for_building(flavour)

    class ErrorLogger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: int, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(message)
            log.debug("tensorrt: %s", message)

    logger: Logger = ErrorLogger()
    return logger


def one_line(text: str) -> str:
    """Return a message of TensorRT on one line."""
    return " ".join(text.split())
