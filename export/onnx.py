"""Turn a model into an ONNX engine, and prove that it ranks the same.

The engine takes rows and gives rows: histories ``[B, L]``, padded with 0 on the left, to the
``k`` best items ``[B, k]`` and their scores. B and L are free. Ties go to the smaller row.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slmc.artefact import Artefact, Draft, draft
from slmc.data.dataset import Dataset
from slmc.errors import UsageError
from slmc.export import card, fusion, lowering, parity, passes, triton, vocabulary
from slmc.export import table as item_table
from slmc.export.config import ExportConfig
from slmc.export.reference import in_precision, known_prefix, linear_layers, rounds_tokens
from slmc.export.runtime import GRAPH, SERVING, needed, providers
from slmc.model.codes import Codes, stored
from slmc.model.loading import Recommender, load_model, quiet
from slmc.model.recommender import SequentialRecommender
from slmc.model.table import QuantizedTable

if TYPE_CHECKING:
    from slmc.export.tensorrt import Planned

ITEM_VECTORS = "item_vectors.safetensors"
LARGE_TABLE = 16_000_000
"""Numbers in an item table from which an 8-bit copy is worth its memory: 250,000 items of 64."""

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
    own = stored(inputs["model"])
    precision = config.precision or own_precision(own)
    check_precision(precision, own, config)
    providers(precision)
    if (reason := no_gain(precision, own)) is not None:
        log.warning("precision %s: %s", precision, reason)
    plan = _planned(config, model, top_k, own)
    with draft(out) as work:
        table = table_form(model, config)
        graph = to_onnx(model, config.layout, top_k, config.opset, precision, own, table)
        passes.add_outputs(
            graph, config.outputs, model.config.num_items + 1, model.item_vectors().shape[1]
        )
        passes.save(graph, work.path / GRAPH)
        if "user_vectors" in config.outputs:
            vectors = {"item_vectors": model.item_vectors().detach().contiguous()}
            save_file(vectors, work.path / ITEM_VECTORS)
        _describe(config, inputs["model"], model, precision, top_k, work)
        reference = in_precision(model, precision, own, config.layout)
        histories = parity.real_histories(data)
        rounds = rounds_tokens(reference)
        report = parity.check(work.path, reference, histories, config, rounds=rounds)
        (work.path / "parity.json").write_text(_json(report))
        if plan is not None:
            built = plan.write(work.path, data, histories)
        if "triton" in config.formats:
            triton.write(work.path, config, histories)
        size_mb = sum(f.stat().st_size for f in _serving(work.path)) / 1e6
        metrics = {
            "size_mb": size_mb,
            "top_k": top_k,
            "layout": config.layout,
            "precision": precision,
            "parity": {name: report[name] for name in ("max_error", "overlap")},
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": len(model.layers),
        }
        if plan is not None:
            metrics["tensorrt"] = {n: built[n] for n in ("flavour", "precision", "executed")}
        card.write(work.path, metrics, report)
        return work.seal(
            kind="engine",
            stage="export",
            config=config,
            inputs=inputs,
            metrics=metrics,
            libraries=("torch", "transformers", "numpy", "onnx", "onnxscript", "onnxruntime"),
        )


def _planned(
    config: ExportConfig, model: Recommender, top_k: int, own: dict[str, Codes]
) -> "Planned | None":
    """The plan of TensorRT's that is asked for, checked before anything is computed."""
    if "tensorrt" not in config.formats:
        return None
    from slmc.export.tensorrt import planned  # it traces with this module

    return planned(config, model, top_k, own)


def own_precision(own: Mapping[str, Codes]) -> str:
    """The precision that a model is in: that of its narrowest codes, ``fp32`` without any."""
    if not own:
        return "fp32"
    return "int4" if min(codes.bits for codes in own.values()) == 4 else "int8-accurate"


def check_precision(precision: str, own: Mapping[str, Codes], config: ExportConfig) -> None:
    """Refuse a precision that the model cannot have.

    Raises:
        UsageError: Codes are asked for that it lacks, or are to be rounded a second time.
    """
    if precision == "int4" and not any(codes.bits == 4 for codes in own.values()):
        raise UsageError(
            "precision int4: the model has no 4-bit codes.",
            "Quantize it first (`slmc quantize --bits 4`), or export it as int8 or fp32.",
        )
    if precision.startswith("int8") and own and own_precision(own) != precision:
        raise UsageError(
            f"precision {precision}: the model is quantized already ({own_precision(own)}), and "
            "rounding its codes again loses ranking.",
            "Leave precision out, or export the model that it was quantized from.",
        )
    standard = config.layout == "padded" or not all(map(lowering.fits, own.values()))
    if precision in ("int4", "int8-accurate") and standard and config.opset < 21:
        raise UsageError(
            f"precision {precision}: standard operators for blocks of codes need opset 21, "
            f"not {config.opset}.",
            "Raise opset to 21.",
        )


def no_gain(precision: str, own: Mapping[str, Codes]) -> str | None:
    """What a precision does not bring in ONNX Runtime on CPUs, if it is not what one expects."""
    if precision == "int4":
        return (
            "the engine gets smaller, not faster: 4-bit blocks are multiplied with float32 tokens, "
            "at about the speed of fp32. For speed export the float model as int8."
        )
    if precision in lowering.HALVES:
        return (
            "16 bits are for GPUs: on a processor the engine gets smaller, and slower than fp32. "
            "There export it as int8."
        )
    if precision == "fp32" and own:
        return "codes are stored as floats: as large and as slow as before quantizing."
    return None


def table_form(model: Recommender, config: ExportConfig) -> str:
    """How the item table is multiplied: as the config says, or by its size.

    Raises:
        UsageError: The layout has no such form, or the table is quantized already.
    """
    if isinstance(model.item_embeddings, QuantizedTable):
        if config.table is not None:
            raise UsageError(
                f"table {config.table}: the model's item table is quantized already.",
                "Leave table out, or export the model that it was quantized from.",
            )
        return f"int{model.item_embeddings.bits}"
    if config.table == "int8+rescore" and config.layout == "padded":
        raise UsageError(
            "table int8+rescore: standard operators have no product with 8-bit rows.",
            "Take --layout packed, or --table fp32.",
        )
    large = config.layout == "packed" and model.item_vectors().numel() >= LARGE_TABLE
    return config.table or ("int8+rescore" if large else "fp32")


def to_onnx(
    model: Recommender,
    layout: str,
    top_k: int,
    opset: int,
    precision: str = "fp32",
    own: Mapping[str, Codes] | None = None,
    table: str = "fp32",
) -> Any:
    """The graph of a model with the top-k inside, as an ``onnx.ModelProto``.

    The same model gives the same bytes, and nothing in them tells of the machine.

    Args:
        model: In evaluation mode, float32, on the CPU.
        layout: ``packed`` (ONNX Runtime) or ``padded`` (standard operators only).
        top_k: Items given back, at most V.
        opset: Of the default domain.
        precision: Of the decoder's products.
        own: The codes of a quantized model, by layer.
        table: ``fp32`` or ``int8+rescore``; a quantized item table stays as it is stored.
    """
    graph = traced(model, layout, top_k, opset)
    graph = _optimized(graph, model, layout, top_k, precision, own or {}, table)
    passes.keep_newest(graph, model.config.history)
    passes.tidy(graph)
    return graph


def traced(model: Recommender, layout: str, top_k: int, opset: int) -> Any:
    """The graph as torch gives it, its item table held once; arguments as :func:`to_onnx`."""
    item_ids = torch.tensor([[0, 1, 1], [1, 1, 1]])
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with _silence(), quiet(), _float_table(model), known_prefix(model):
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
    return graph


def _optimized(
    graph: Any,
    model: Recommender,
    layout: str,
    top_k: int,
    precision: str,
    own: Mapping[str, Codes],
    table: str,
) -> Any:
    """The same graph, faster, its products in ``precision``."""
    import onnx_ir as ir

    made = ir.from_proto(graph)
    layers = linear_layers(model)
    weights = {name: layer.weight.detach().numpy() for name, layer in layers.items()}
    fusion.name_products(made.graph, weights)

    def form(names: tuple[str, ...]) -> tuple[object, ...]:
        codes = own.get(names[0]) if names else None
        if codes is None or precision == "fp32":
            return (bool(names),)
        return (codes.bits, codes.group_size, codes.zero_point is None)

    if layout == "packed":
        fusion.fuse(made, form, trim=isinstance(model, SequentialRecommender))
    else:
        fusion.merge_products(made.graph, form)
    if precision != "fp32":
        lowering.lower(made.graph, precision, own, layout)
    if precision == "int8":
        lowering.steady_softmax(made.graph)
    item_table.add_masks(made.graph, model.config.num_items + 1)
    stored_table = model.item_embeddings
    if isinstance(stored_table, QuantizedTable):
        item_table.place_codes(made.graph, stored_rows(stored_table), layout)
    elif isinstance(model, SequentialRecommender):
        fusion.drop_unused(made)  # what is small is told by the weights that are left
        item_table.fold_inputs(made.graph)
    if table == "int8+rescore":
        rows = item_table.rounded_rows(model.item_vectors().detach().numpy())
        item_table.rescore(made.graph, rows, top_k)
    if any(node.domain == fusion.MICROSOFT for node in made.graph):
        made.graph.opset_imports[fusion.MICROSOFT] = 1
    fusion.drop_unused(made)
    return ir.to_proto(made)


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
    config: ExportConfig,
    made_of: Artefact,
    model: Recommender,
    precision: str,
    top_k: int,
    work: Draft,
) -> None:
    """Write the files beside the graph that a session needs to be asked and understood."""
    for name in ("preprocessor.json", "items.parquet"):
        shutil.copyfile(made_of.file(name), work.path / name)
    vocabulary.write(work.path / "items.parquet", work.path / vocabulary.FILE)
    engine = {
        "input": {passes.INPUT: ["int64", ["batch", "length"]]},
        "optional_inputs": {
            passes.EXCLUDE_SEEN: ["bool", [1]],
            passes.ALLOWED: ["bool", ["1 or batch", model.config.num_items + 1]],
        },
        "outputs": {
            passes.TOP_ITEMS: ["int64", ["batch", top_k]],
            passes.TOP_SCORES: ["float32", ["batch", top_k]],
        }
        | passes.more_outputs(config.outputs, *model.item_vectors().shape),
        "layout": config.layout,
        "top_k": top_k,
        "opset": config.opset,
        "precision": precision,
        "history": model.config.history,
        "num_items": model.config.num_items,
        "source": made_of.digest,
    }
    (work.path / "engine.json").write_text(_json(engine))


def _serving(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return [f for f in files if str(f.relative_to(folder)).startswith(SERVING)]


@contextmanager
def _float_table(model: Recommender) -> Iterator[None]:
    """Trace a quantized item table as one of floats; a pass puts the codes in their place."""
    stored_table = model.item_embeddings
    if not isinstance(stored_table, QuantizedTable):
        yield
        return
    model.item_embeddings = nn.Embedding.from_pretrained(stored_table.weight)
    try:
        yield
    finally:
        model.item_embeddings = stored_table


def stored_rows(table: QuantizedTable) -> Codes:
    """The codes of a quantized item table, in blocks of a row."""
    codes = table.signed_codes().numpy()
    return item_table.row_codes(codes, table.scale.numpy(), table.bits)


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
