"""Trace each model once for all tests, since torch takes seconds to trace one."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest

from slmc.export.graph import optimize
from slmc.export.tensorrt import graph as tensorrt_graph
from slmc.model.loading import Recommender


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Keep the traced graphs in a folder, by the config and the weights of the model."""
    trace = optimize.traced
    folder.mkdir(exist_ok=True)

    def traced(model: Recommender, *how: Any) -> onnx.ModelProto:
        key = hashlib.sha256(repr((type(model), model.config.to_json_string(), how)).encode())
        for name, tensor in sorted(model.state_dict().items()):
            key.update(name.encode() + tensor.detach().numpy().tobytes())
        file = folder / f"{key.hexdigest()}.onnx"
        if not file.is_file():
            part = file.with_suffix(f".{os.getpid()}")
            part.write_bytes(trace(model, *how).SerializeToString())
            part.replace(file)
        return onnx.load_from_string(file.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        for module in (optimize, tensorrt_graph):
            patch.setattr(module, "traced", traced)
        yield
