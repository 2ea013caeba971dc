"""Turn a model into an ONNX engine, and check that it gives the same answers.

The engine maps histories ``[B, L]`` of rows, padded with 0 on the left, to the rows of the ``k``
best items ``[B, k]`` and their scores. B and L are dynamic. Ties go to the smaller row.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from slmc.artefact import Artefact, Draft, draft
from slmc.data.dataset import Dataset
from slmc.export import card, parity, vocabulary
from slmc.export.config import ExportConfig
from slmc.export.constraints import Source, no_gain, refusals
from slmc.export.graph import interface, outputs, serialize
from slmc.export.graph.optimize import both_graphs
from slmc.export.index import write as index
from slmc.export.items import new_items
from slmc.export.items.new_items import NewItems
from slmc.export.reference.precision import in_precision, rounds_activations
from slmc.export.runtime.engine import (
    GRAPH,
    MASKED,
    SERVING,
    Histories,
    available_providers,
    import_extra,
)
from slmc.export.runtime.vector_index import import_faiss
from slmc.export.tensorrt.build import prepare_plan
from slmc.export.triton import repository as triton
from slmc.model.codes import Codes, load_codes
from slmc.model.loading import Recommender, load_model
from slmc.model.quantized_table import QuantizedTable
from slmc.model.recommender import SequentialRecommender

ITEM_VECTORS = "item_vectors.safetensors"
LARGE_TABLE = 16_000_000
"""Size of an item table from which an 8-bit copy pays for its memory: 250,000 items of width 64."""

log = logging.getLogger("slmc.export")


def export(config: ExportConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Export a model to an engine; the engine is written only if it passes the parity check.

    Raises:
        UsageError: Model and dataset have different catalogues, or the model cannot be exported
            with these settings.
        VerdictError: The engine differs from the model; nothing is written.
        MissingError: A library is not installed, or there is no GPU for bf16.
    """
    job = _prepare(config, inputs)
    plan = None
    if "tensorrt" in config.formats:
        plan = prepare_plan(config, job.model, job.top_k, job.layer_codes)
    with draft(out) as work:
        _write_graphs(job, work.path)
        _write_metadata(job, inputs["model"], work)
        histories = parity.real_histories(job.data)
        report = _check_parity(job, work.path, _with_new_items(job, histories))
        metrics = _metrics(job, report)
        if plan is not None:
            entry = plan.write(work.path, job.data, histories)
            metrics["tensorrt"] = {n: entry[n] for n in ("flavour", "precision", "executed")}
        if "triton" in config.formats:
            triton.write(work.path, config, histories)
        if config.index is not None:
            vectors = job.model.item_vectors().detach().numpy()
            metrics["index"] = index.write(work.path, config, vectors, histories)
        metrics["size_mb"] = sum(f.stat().st_size for f in _serving_files(work.path)) / 1e6
        card.write(work.path, metrics, report)
        return work.seal(
            kind="engine",
            stage="export",
            config=config,
            inputs=inputs,
            metrics=metrics,
        )


@dataclass(frozen=True)
class _Job:
    """The model to export, and the settings that depend on it."""

    config: ExportConfig
    data: Dataset
    model: Recommender
    layer_codes: dict[str, Codes]
    top_k: int
    precision: str
    new: NewItems | None = None
    """What was changed in the item table of the model."""


def _prepare(config: ExportConfig, inputs: dict[str, Artefact]) -> _Job:
    """Load the inputs, and raise for unsupported settings before any computation."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module)
    vocabulary.check_same_items(inputs["model"], inputs["data"])
    data, model = Dataset.open(inputs["data"]), load_model(inputs["model"])
    layer_codes = load_codes(inputs["model"])
    source = source_of(model, layer_codes)
    for refusal in refusals(config, source):
        raise refusal.error()
    precision = config.precision or source.precision
    available_providers(precision)
    if config.index is not None:
        import_faiss()
    if (reason := no_gain(precision, source)) is not None:
        log.warning("precision %s: %s", precision, reason)
    job = _Job(config, data, model, layer_codes, min(config.top_k, data.num_items), precision)
    if config.items is None and config.cooccurrence is None:
        return job
    return replace(job, new=new_items.extend(model, inputs["model"], inputs["data"], config))


def source_of(model: Recommender, layer_codes: Mapping[str, Codes]) -> Source:
    """Collect the properties of a model that decide whether it can be exported.

    Args:
        model: The loaded model.
        layer_codes: The stored codes of its linear layers, by name.
    """
    table, config = model.item_embeddings, model.config
    prompt = getattr(config, "prefix_length", 0) + getattr(config, "suffix_length", 0)
    return Source(
        bits=frozenset(codes.bits for codes in layer_codes.values()),
        group_sizes=frozenset(codes.group_size for codes in layer_codes.values()),
        zero_points=any(c.bits == 4 and c.zero_point is not None for c in layer_codes.values()),
        table_bits=table.bits if isinstance(table, QuantizedTable) else None,
        on_llm=isinstance(model, SequentialRecommender),
        history=config.history,
        prompt=prompt,
    )


def table_form(model: Recommender, config: ExportConfig) -> str:
    """The form of the item table: as stored, as configured, or chosen by its size."""
    if isinstance(model.item_embeddings, QuantizedTable):
        return f"int{model.item_embeddings.bits}"
    large = config.layout == "packed" and model.item_vectors().numel() >= LARGE_TABLE
    return config.table or ("int8+rescore" if large else "fp32")


def _write_graphs(job: _Job, folder: Path) -> None:
    """Write both graphs, and the item vectors if user vectors are an output."""
    config, model = job.config, job.model
    table = table_form(model, config)
    plain, masked = folder / GRAPH, folder / MASKED
    rows, width = model.item_vectors().shape
    graphs = both_graphs(
        model, config.layout, job.top_k, config.opset, job.precision, job.layer_codes, table
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


def _check_parity(job: _Job, folder: Path, histories: Histories) -> dict[str, Any]:
    """Compare the engine with the model in its precision; return the content of ``parity.json``."""
    reference = in_precision(job.model, job.precision, job.layer_codes, job.config.layout)
    rounded = rounds_activations(reference)
    report = parity.check(folder, reference, histories, job.config, rounded=rounded)
    parity.check_masks(folder, histories)
    (folder / "parity.json").write_text(_json(report))
    return report


def _metrics(job: _Job, report: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {
        "top_k": job.top_k,
        "layout": job.config.layout,
        "precision": job.precision,
        "parity": {name: report[name] for name in ("max_error", "overlap")},
        "parameters": sum(p.numel() for p in job.model.parameters()),
        "layers": len(job.model.layers),
    }
    return metrics if job.new is None else metrics | {"new_items": dict(job.new.summary)}


def _with_new_items(job: _Job, histories: Histories) -> Histories:
    """Histories of which every second one ends with an item that was added or replaced."""
    if job.new is None:
        return histories
    chosen = np.random.default_rng(job.config.seed).choice(job.new.rows, len(histories))
    last = (np.array([row], dtype=np.int32) for row in chosen)
    return [
        np.concatenate([rows[:-1], row]) if place % 2 and rows.size else rows
        for place, (rows, row) in enumerate(zip(histories, last, strict=True))
    ]


def _write_metadata(job: _Job, source: Artefact, work: Draft) -> None:
    """Write the vocabulary, ``engine.json`` and the configs of preprocessor and transformers."""
    config, model, top_k = job.config, job.model, job.top_k
    shutil.copyfile(source.file("preprocessor.json"), work.path / "preprocessor.json")
    if job.new is None:
        shutil.copyfile(source.file("items.parquet"), work.path / "items.parquet")
    else:
        job.new.vocabulary.write_parquet(work.path / "items.parquet")
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
        "precision": job.precision,
        "history": model.config.history,
        "num_items": model.config.num_items,
        "source": source.digest,
    }
    if job.new is not None:
        engine["new_items"] = dict(job.new.summary)
    (work.path / "engine.json").write_text(_json(engine))
    ((work.path / GRAPH).parent / "config.json").write_text(_json(_transformers_config(model)))


def _transformers_config(model: Recommender) -> dict[str, str | int]:
    """The shape as a model type that transformers knows; Optimum requires such a config."""
    if isinstance(model, SequentialRecommender):
        backbone = model.config.backbone_config.to_dict()
        names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
        return {name: backbone[name] for name in names}
    # SASRec has the layers of GPT-2: pre-norm, learned positions, one matmul for q, k and v.
    shape = model.config
    return {
        "model_type": "gpt2",
        "n_embd": shape.item_dim,
        "n_layer": shape.num_layers,
        "n_head": shape.num_heads,
    }


def _serving_files(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return [f for f in files if str(f.relative_to(folder)).startswith(SERVING)]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
