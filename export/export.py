"""Turn a model into an ONNX engine, and prove that it ranks the same.

The engine takes rows and gives rows: histories ``[B, L]``, padded with 0 on the left, to the
``k`` best items ``[B, k]`` and their scores. B and L are free. Ties go to the smaller row.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from slmc.artefact import Artefact, Draft, draft
from slmc.data.dataset import Dataset
from slmc.export import card, parity, vocabulary
from slmc.export.config import ExportConfig
from slmc.export.constraints import Source, no_gain, refusals
from slmc.export.graph import interface, outputs, serialize
from slmc.export.graph.optimize import both_graphs
from slmc.export.reference.precision import in_precision, rounds_tokens
from slmc.export.runtime.engine import GRAPH, MASKED, SERVING, Histories, needed, providers
from slmc.export.tensorrt.build import planned
from slmc.export.triton import repository as triton
from slmc.model.codes import Codes, stored
from slmc.model.loading import Recommender, load_model
from slmc.model.quantized_table import QuantizedTable
from slmc.model.recommender import SequentialRecommender

ITEM_VECTORS = "item_vectors.safetensors"
LARGE_TABLE = 16_000_000
"""Numbers in an item table from which an 8-bit copy is worth its memory: 250,000 items of 64."""

log = logging.getLogger("slmc.export")


def export(config: ExportConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Make the engine of a model; it appears only if it gives the model's answers.

    Raises:
        UsageError: The model ranks another catalogue than the dataset's, or cannot be exported so.
        VerdictError: The engine differs from the model; nothing is written.
        MissingError: A library is not installed, or bf16 finds no GPU.
    """
    order = _order(config, inputs)
    plan = (
        planned(config, order.model, order.top_k, order.own)
        if "tensorrt" in config.formats
        else None
    )
    with draft(out) as work:
        _write_graph(order, work.path)
        _describe(order, inputs["model"], work)
        histories = parity.real_histories(order.data)
        report = _proven(order, work.path, histories)
        metrics = _metrics(order, report)
        if plan is not None:
            built = plan.write(work.path, order.data, histories)
            metrics["tensorrt"] = {n: built[n] for n in ("flavour", "precision", "executed")}
        if "triton" in config.formats:
            triton.write(work.path, config, histories)
        metrics["size_mb"] = sum(f.stat().st_size for f in _serving(work.path)) / 1e6
        card.write(work.path, metrics, report)
        return work.seal(
            kind="engine",
            stage="export",
            config=config,
            inputs=inputs,
            metrics=metrics,
        )


@dataclass(frozen=True)
class _Order:
    """What is to be made of which model."""

    config: ExportConfig
    data: Dataset
    model: Recommender
    own: dict[str, Codes]
    top_k: int
    precision: str


def _order(config: ExportConfig, inputs: dict[str, Artefact]) -> _Order:
    """Read what an export needs, and refuse what cannot be before anything is computed."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        needed(module)
    vocabulary.check_same(inputs["model"], inputs["data"])
    data, model = Dataset.open(inputs["data"]), load_model(inputs["model"])
    own = stored(inputs["model"])
    source = source_of(model, own)
    for refused in refusals(config, source):
        raise refused.error()
    precision = config.precision or source.precision
    providers(precision)
    if (reason := no_gain(precision, source)) is not None:
        log.warning("precision %s: %s", precision, reason)
    return _Order(config, data, model, own, min(config.top_k, data.num_items), precision)


def source_of(model: Recommender, own: Mapping[str, Codes]) -> Source:
    """What decides whether a model can be exported as asked.

    Args:
        model: As it was loaded.
        own: The codes that its layers are stored as.
    """
    table, config = model.item_embeddings, model.config
    prompt = getattr(config, "prefix_length", 0) + getattr(config, "suffix_length", 0)
    return Source(
        bits=frozenset(codes.bits for codes in own.values()),
        group_sizes=frozenset(codes.group_size for codes in own.values()),
        zero_points=any(c.bits == 4 and c.zero_point is not None for c in own.values()),
        table_bits=table.bits if isinstance(table, QuantizedTable) else None,
        on_llm=isinstance(model, SequentialRecommender),
        history=config.history,
        prompt=prompt,
    )


def table_form(model: Recommender, config: ExportConfig) -> str:
    """How the item table is multiplied: as it is stored, as the config says, or by its size."""
    if isinstance(model.item_embeddings, QuantizedTable):
        return f"int{model.item_embeddings.bits}"
    large = config.layout == "packed" and model.item_vectors().numel() >= LARGE_TABLE
    return config.table or ("int8+rescore" if large else "fp32")


def _write_graph(order: _Order, folder: Path) -> None:
    """Write both graphs, and the item vectors where users' vectors are given out."""
    config, model = order.config, order.model
    table = table_form(model, config)
    plain, masked = folder / GRAPH, folder / MASKED
    rows, width = model.item_vectors().shape
    graphs = both_graphs(
        model, config.layout, order.top_k, config.opset, order.precision, order.own, table
    )
    for file, graph in zip((plain, masked), graphs, strict=True):
        outputs.add_outputs(graph, config.outputs, rows, width)
        if file == plain:
            serialize.save(graph, file)
        else:
            serialize.save_sharing_weights(graph, plain, file)
    if "user_vectors" in config.outputs:
        vectors = {"item_vectors": model.item_vectors().detach().contiguous()}
        save_file(vectors, folder / ITEM_VECTORS)


def _proven(order: _Order, folder: Path, histories: Histories) -> dict[str, Any]:
    """Compare the engine with the model in its precision; the body of ``parity.json``."""
    reference = in_precision(order.model, order.precision, order.own, order.config.layout)
    rounds = rounds_tokens(reference)
    report = parity.check(folder, reference, histories, order.config, rounds=rounds)
    parity.check_masks(folder, histories)
    (folder / "parity.json").write_text(_json(report))
    return report


def _metrics(order: _Order, report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "top_k": order.top_k,
        "layout": order.config.layout,
        "precision": order.precision,
        "parity": {name: report[name] for name in ("max_error", "overlap")},
        "parameters": sum(p.numel() for p in order.model.parameters()),
        "layers": len(order.model.layers),
    }


def _describe(order: _Order, made_of: Artefact, work: Draft) -> None:
    """Write the files beside the graph that a session needs to be asked and understood."""
    config, model, top_k = order.config, order.model, order.top_k
    for name in ("preprocessor.json", "items.parquet"):
        shutil.copyfile(made_of.file(name), work.path / name)
    vocabulary.write(work.path / "items.parquet", work.path / vocabulary.FILE)
    engine = {
        "input": {interface.INPUT: ["int64", ["batch", "length"]]},
        "masks": {
            interface.EXCLUDE_SEEN: ["bool", ["1 or batch"]],
            interface.ALLOWED: ["bool", ["1 or batch", model.config.num_items + 1]],
        },
        "outputs": {
            interface.TOP_ITEMS: ["int64", ["batch", top_k]],
            interface.TOP_SCORES: ["float32", ["batch", top_k]],
        }
        | interface.extra_outputs(config.outputs, *model.item_vectors().shape),
        "layout": config.layout,
        "top_k": top_k,
        "opset": config.opset,
        "precision": order.precision,
        "history": model.config.history,
        "num_items": model.config.num_items,
        "source": made_of.digest,
    }
    (work.path / "engine.json").write_text(_json(engine))
    ((work.path / GRAPH).parent / "config.json").write_text(_json(_known_config(model)))


def _known_config(model: Recommender) -> dict[str, Any]:
    """The shape of a kind that transformers knows: Optimum opens no folder without one."""
    if isinstance(model, SequentialRecommender):
        backbone = model.config.backbone_config.to_dict()
        known = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
        return {name: backbone[name] for name in known}
    # The layers of SASRec are those of GPT-2: pre-norm, learned positions, one product for q, k, v.
    shape = model.config
    return {
        "model_type": "gpt2",
        "n_embd": shape.item_dim,
        "n_layer": shape.num_layers,
        "n_head": shape.num_heads,
    }


def _serving(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return [f for f in files if str(f.relative_to(folder)).startswith(SERVING)]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
