"""The Open Inference Protocol, version 2: tensors of rows in, tensors of rows and scores out.

An engine is a model with one input, the rows of the histories ``[B, L]``, padded with 0 on the
left, and two outputs ``[B, k]``. Tensors are JSON, or bytes behind the JSON (Triton's extension
``binary_tensor_data``).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from slmc import __version__
from slmc.export.graph.interface import INPUT, TOP_ITEMS, TOP_SCORES
from slmc.server.answering import Opened
from slmc.server.engines import Engines
from slmc.server.gate import ENGINE
from slmc.server.requests import RequestError, described, parse

JSON_BYTES = "Inference-Header-Content-Length"
"""Header with the length of the JSON, if tensors follow as bytes."""
EXTENSION = "binary_tensor_data"
OUTPUTS = {TOP_ITEMS: "INT64", TOP_SCORES: "FP32"}
MOST_HISTORIES = 1024
"""Largest B."""


class _Part(BaseModel):
    """A part of a request; further fields are allowed, as the protocol asks."""

    model_config = ConfigDict(frozen=True, strict=True)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Tensor(_Part):
    """An input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None


class Output(_Part):
    """An output that is asked for."""

    name: str


class Infer(_Part):
    """The JSON of a request."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Output] | None = None


def add_routes(app: FastAPI, engines: Engines) -> None:
    """Add the routes under ``/v2``."""

    def reply(content: object, status: int = 200) -> Response:
        return Response(json.dumps(content), status, media_type="application/json")

    def check_ready() -> None:
        if engines.stopping:
            raise RequestError(503, "the server is stopping")

    @app.get("/v2")
    async def server() -> Response:
        """The server and its extensions."""
        return reply({"name": "slmc", "version": __version__, "extensions": [EXTENSION]})

    @app.get("/v2/health/live")
    async def live() -> Response:
        """Whether the server runs."""
        return reply({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        """Whether requests are accepted."""
        check_ready()
        return reply({"ready": True})

    @app.get("/v2/models/{name}")
    async def model(name: str) -> Response:
        """The tensors of an engine."""
        return reply(metadata(name, engines.slot(name).opened))

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        """Whether requests for an engine are accepted."""
        engines.slot(name)
        check_ready()
        return reply({"name": name, "ready": True})

    @app.post("/v2/models/{name}/infer", openapi_extra=described(Infer))
    async def infer(request: Request, name: str) -> Response:
        """The best items of histories, as rows of ``items.jsonl``."""
        slot = engines.slot(name)
        request.scope[ENGINE] = slot.name
        body = await request.body()
        length = _json_length(request.headers.get(JSON_BYTES), len(body))
        ask = parse(Infer, body[:length])
        wanted = _outputs(ask)
        item_ids = read_input(ask, body[length:], slot.opened)
        tensors = await slot.batcher.answer(
            _compute, ("v2", item_ids.shape[1]), item_ids, len(item_ids),
            engines.settings.deadline_ms / 1000,
        )  # fmt: skip
        header = {"model_name": name, "model_version": slot.opened.version}
        if ask.id is not None:
            header["id"] = ask.id
        return _response(header, {one: tensors[one] for one in wanted}, wanted)


def metadata(name: str, opened: Opened) -> dict[str, Any]:
    """Name, version and tensors of an engine, as the protocol has them."""
    k = min(opened.about.top_k, opened.about.num_items)
    return {
        "name": name, "versions": [opened.version], "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "INT64", "shape": [-1, -1]}],
        "outputs": [
            {"name": output, "datatype": kind, "shape": [-1, k]}
            for output, kind in OUTPUTS.items()
        ],
    }  # fmt: skip


def read_input(ask: Infer, raw: bytes, opened: Opened) -> NDArray[np.int64]:
    """The rows ``[B, L]`` of a request, cut to the newest items that the engine reads.

    Raises:
        RequestError: It is not one tensor of rows (400).
    """
    if [one.name for one in ask.inputs] != [INPUT]:
        raise RequestError(400, f"inputs: expected one tensor, {INPUT}")
    (tensor,) = ask.inputs
    if tensor.datatype != "INT64":
        raise RequestError(400, f"inputs[0].datatype: expected INT64, not {tensor.datatype[:40]}")
    shape = tensor.shape
    if len(shape) != 2 or not 0 < shape[0] <= MOST_HISTORIES or shape[1] < 1:
        message = f"inputs[0].shape: expected [B, L], B at most {MOST_HISTORIES}, not {shape[:9]}"
        raise RequestError(400, message)
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if size != len(raw) or size != 8 * shape[0] * shape[1]:
            raise RequestError(400, f"inputs[0]: {len(raw)} bytes do not fit the shape {shape}")
        rows = np.frombuffer(raw, "<i8").reshape(shape)
    else:
        rows = _from_json(tensor.data, shape)
    items = opened.about.num_items
    if rows.min() < 0 or rows.max() > items:
        raise RequestError(400, f"inputs[0]: rows must be in 1..{items}, and 0 before the history")
    newest: NDArray[np.int64] = np.ascontiguousarray(rows[:, -opened.about.history :], np.int64)
    return newest


def _from_json(data: list[Any] | None, shape: Sequence[int]) -> NDArray[np.int64]:
    """Numbers of a tensor, flat or in lists."""
    try:
        values = np.array(data if data is not None else [])
        if values.dtype.kind not in "iu":
            raise ValueError
        return values.reshape(tuple(shape)).astype(np.int64)
    except (ValueError, OverflowError):
        message = f"inputs[0].data: expected whole numbers that fit the shape {list(shape)}"
        raise RequestError(400, message) from None


def _json_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not header.isascii() or not header.isdigit() or int(header) > size:
        raise RequestError(400, f"{JSON_BYTES}: expected at most {size}, the bytes of the body")
    return int(header)


def _outputs(ask: Infer) -> dict[str, bool]:
    """Name of each output that is asked for -> whether as bytes."""
    every = ask.parameters.get("binary_data_output") is True
    asked = ask.outputs if ask.outputs is not None else [Output(name=one) for one in OUTPUTS]
    for number, one in enumerate(asked):
        if one.name not in OUTPUTS:
            known = " and ".join(OUTPUTS)
            message = f"outputs[{number}].name: the engine has {known}, not {one.name[:40]}"
            raise RequestError(400, message)
    return {one.name: one.parameters.get("binary_data", every) is True for one in asked}


def _compute(
    opened: Opened, requests: Sequence[NDArray[np.int64]]
) -> list[dict[str, NDArray[Any]]]:
    """Answer requests of histories of one length in one call; runs in a worker thread."""
    items, scores = opened.session.answer(np.concatenate(requests))
    ends = np.cumsum([len(one) for one in requests])[:-1]
    parts = zip(np.split(items, ends), np.split(scores, ends), strict=True)
    return [{TOP_ITEMS: rows, TOP_SCORES: values} for rows, values in parts]


def _response(
    header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], binary: Mapping[str, bool]
) -> Response:
    outputs, raw = [], b""
    for name, values in tensors.items():
        output: dict[str, Any] = {
            "name": name, "datatype": OUTPUTS[name], "shape": list(values.shape),
        }  # fmt: skip
        if binary[name]:
            data = values.astype("<i8" if OUTPUTS[name] == "INT64" else "<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            raw += data
        else:
            output["data"] = [_number(one) for one in values.ravel().tolist()]
        outputs.append(output)
    text = json.dumps({**header, "outputs": outputs}, allow_nan=False).encode()
    if not any(binary.values()):
        return Response(text, media_type="application/json")
    return Response(
        text + raw, media_type="application/octet-stream", headers={JSON_BYTES: str(len(text))}
    )


def _number(value: float) -> float:
    """JSON has no infinity: an item that may not be returned has the lowest float32."""
    return max(value, float(np.finfo(np.float32).min))
