"""An engine made by hand: its scores are a table looked up by the newest item."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import polars as pl
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from slmc.artefact import Artefact, draft
from slmc.export.config import ExportConfig
from slmc.export.graph.histories import accept_all_lengths
from slmc.export.graph.masks import add_masks, topk_choice
from slmc.export.runtime.engine import GRAPH, MASKED

NOTHING = -np.inf
NEXT = np.array(
    [
        [NOTHING, 0, 0, 0, 0],
        [NOTHING, 9, 3, 2, 1],  # after a: a, b, c, d
        [NOTHING, 1, 2, 3, 4],  # after b: d, c, b, a
        [NOTHING, 5, 5, 1, 5],  # after c: a, b, d tied, then c
        [NOTHING, 0, 1, 7, 0],
    ],
    dtype=np.float32,
)
TITLES = {
    "a": {"title": "Alien"},
    "c": {"title": "Überfahrt"},
    "d": {"title": "\"D\" \\ 'd' </d> 電影 🎬"},
}
COUNTS = {"a": 5, "b": 9, "c": 5, "d": 0}
"""Training interactions."""


def graphs(top_k: int, scores: NDArray[np.float32] = NEXT) -> Iterator[onnx.ModelProto]:
    """Of histories alone, and with masks."""
    constants = {"next": scores, "last": np.array(-1), "k": np.array([top_k])}
    nodes = [
        helper.make_node("Gather", ["item_ids", "last"], ["newest"], axis=1),
        helper.make_node("Gather", ["next", "newest"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["top_scores", "top_items"]),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "by-hand",
        [value("item_ids", TensorProto.INT64, ["batch", "length"])],
        [
            value("top_items", TensorProto.INT64, ["batch", top_k]),
            value("top_scores", TensorProto.FLOAT, ["batch", top_k]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = ir.from_proto(model)
    accept_all_lengths(given.graph, history=2, items=4)
    yield ir.to_proto(given)
    add_masks(given.graph, topk_choice(given.graph))
    yield ir.to_proto(given)


def by_hand(
    tmp_path: Path,
    top_k: int,
    *,
    precision: str = "fp32",
    more: Sequence[str] = (),
    scores: NDArray[np.float32] = NEXT,
) -> Artefact:
    """The sealed engine ``engine`` of the items a to d; ``more``: names of further files."""
    with draft(tmp_path / "engine") as work:
        (work.path / "onnx").mkdir()
        for name, graph in zip((GRAPH, MASKED), graphs(top_k, scores), strict=True):
            (work.path / name).write_bytes(graph.SerializeToString())
        described = {"layout": "padded", "top_k": top_k, "opset": 18, "precision": precision}
        described |= {"history": 2, "num_items": 4, "source": "by hand"}
        (work.path / "engine.json").write_text(json.dumps(described))
        entries = [{"row": row, "item": item} for row, item in enumerate("abcd", start=1)]
        lines = [json.dumps(entry | TITLES.get(entry["item"], {})) for entry in entries]
        (work.path / "items.jsonl").write_text("\n".join(lines) + "\n")
        counts = {"row": [1, 2, 3, 4], "item": list(COUNTS), "count": list(COUNTS.values())}
        pl.DataFrame(counts).write_parquet(work.path / "items.parquet")
        (work.path / "preprocessor.json").write_text('{"history": 2, "unknown_ids": "skip"}')
        (work.path / "README.md").write_text("# By hand\n")
        for name in more:
            (work.path / name).parent.mkdir(parents=True, exist_ok=True)
            (work.path / name).write_text(name)
        return work.seal(kind="engine", stage="export", config=ExportConfig(), inputs={})
