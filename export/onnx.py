"""Turn a model into an ONNX engine, and prove that it ranks the same.

The engine takes rows and gives rows: histories ``[B, L]``, padded with 0 on the left, to the
``k`` best items ``[B, k]`` and their scores. B and L are free. Ties go to the smaller row.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slmc.artefact import Artefact, Draft, draft
from slmc.data.dataset import Dataset
from slmc.errors import UsageError
from slmc.export import card, parity, passes, vocabulary
from slmc.export.config import ExportConfig
from slmc.export.runtime import GRAPH, SERVING, needed
from slmc.model.loading import Recommender, load_model, quiet
from slmc.model.recommender import SequentialRecommender

log = logging.getLogger("slmc.export")


def export(config: ExportConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Make the engine of a model; it appears only if it gives the model's answers.

    Raises:
        UsageError: The model ranks another catalogue than the dataset's, or has no such layout.
        VerdictError: The engine differs from the model; nothing is written.
        MissingError: onnx, onnxscript or onnxruntime is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        needed(module)
    vocabulary.check_same(inputs["model"], inputs["data"])
    data = Dataset.open(inputs["data"])
    model = load_model(inputs["model"])
    top_k = min(config.top_k, data.num_items)
    with draft(out) as work:
        graph = to_onnx(model, config.layout, top_k, config.opset)
        passes.save(graph, work.path / GRAPH)
        _describe(config, inputs["model"], model, top_k, work)
        report = parity.check(work.path, model, parity.real_histories(data), config)
        (work.path / "parity.json").write_text(_json(report))
        size_mb = sum(f.stat().st_size for f in _serving(work.path)) / 1e6
        metrics = {
            "size_mb": size_mb,
            "top_k": top_k,
            "layout": config.layout,
            "parity": {name: report[name] for name in ("max_error", "overlap")},
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": len(model.layers),
        }
        card.write(work.path, metrics, report)
        return work.seal(
            kind="engine",
            stage="export",
            config=config,
            inputs=inputs,
            metrics=metrics,
            libraries=("torch", "transformers", "numpy", "onnx", "onnxscript", "onnxruntime"),
        )


def to_onnx(model: Recommender, layout: str, top_k: int, opset: int) -> Any:
    """The graph of a model with the top-k inside, as an ``onnx.ModelProto``.

    The same model gives the same bytes, and nothing in them tells of the machine.

    Args:
        model: In evaluation mode, float32, on the CPU.
        layout: ``packed`` (ONNX Runtime) or ``padded`` (standard operators only).
        top_k: Items given back, at most V.
        opset: Of the default domain.
    """
    item_ids = torch.tensor([[0, 1, 1], [1, 1, 1]])
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with _silence(), quiet():
        program = torch.onnx.export(
            _Ranker(model, layout, top_k),
            (item_ids,),
            dynamo=True,
            opset_version=opset,
            input_names=[passes.INPUT],
            output_names=[passes.TOP_ITEMS, passes.TOP_SCORES],
            dynamic_shapes={"item_ids": dims},
            verbose=False,
        )
    graph = program.model_proto  # type: ignore[union-attr]
    passes.share_table(graph)
    passes.keep_newest(graph, model.config.history)
    passes.tidy(graph)
    return graph


class _Ranker(nn.Module):
    """The best items of a history: what the graph computes."""

    def __init__(self, model: Recommender, layout: str, top_k: int) -> None:
        super().__init__()
        self.model, self.top_k = model, top_k
        self.user_vectors = model.user_vectors
        if layout == "padded":
            if not isinstance(model, SequentialRecommender):
                raise UsageError(
                    f"layout: a {type(model).__name__} has no padded form.",
                    "Export it with --layout packed.",
                )
            self.user_vectors = model.padded_user_vectors
        # Row 0 takes part in the product, so that the table is used whole, and never wins.
        bias = torch.zeros(model.config.num_items + 1)
        bias[0] = -torch.inf
        self.register_buffer("padding", bias)
        self.eval()

    def forward(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``[B, L]`` to the best rows ``[B, k]`` and their scores."""
        users = self.user_vectors(item_ids)
        scores = torch.addmm(self.get_buffer("padding"), users, self.model.item_vectors().T)
        values, rows = torch.topk(scores, self.top_k)
        return rows, values


def _describe(
    config: ExportConfig, made_of: Artefact, model: Recommender, top_k: int, work: Draft
) -> None:
    """Write the files beside the graph that a session needs to be asked and understood."""
    for name in ("preprocessor.json", "items.parquet"):
        shutil.copyfile(made_of.file(name), work.path / name)
    vocabulary.write(work.path / "items.parquet", work.path / vocabulary.FILE)
    engine = {
        "input": {passes.INPUT: ["int64", ["batch", "length"]]},
        "outputs": {
            passes.TOP_ITEMS: ["int64", ["batch", top_k]],
            passes.TOP_SCORES: ["float32", ["batch", top_k]],
        },
        "layout": config.layout,
        "top_k": top_k,
        "opset": config.opset,
        "precision": "fp32",
        "history": model.config.history,
        "num_items": model.config.num_items,
        "source": made_of.digest,
    }
    (work.path / "engine.json").write_text(_json(engine))


def _serving(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return [f for f in files if str(f.relative_to(folder)).startswith(SERVING)]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's advice to its developers from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        with warnings.catch_warnings():
            # Raised inside torch.export by torch's own use of pytree.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"copyreg|torch\.")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|onnx")
            yield
    finally:
        logger.setLevel(level)
