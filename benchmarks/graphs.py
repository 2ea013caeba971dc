"""Whether a change of the exporter leaves the graphs as they were: ``python benchmarks/graphs.py``.

Small models with random weights are turned into graphs in every layout, precision and form of the
item table, and each graph gets a digest that does not depend on the names of its nodes and values
or on the order of its nodes: of operators, attributes, constants, and what is connected to what.
``--write FILE`` keeps the digests, ``--compare FILE`` says which of them differ and exits 1 if any
does. Minutes.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, numpy_helper

from slmc.export.graph.optimize import both_graphs
from slmc.export.reference.precision import linear_layers
from slmc.export.tensorrt.graph import typed_graph
from slmc.model import random_models
from slmc.model.codes import Codes, rounded
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable
from slmc.model.recommender import SequentialRecommender
from slmc.model.sasrec import Sasrec, SasrecModelConfig

ITEMS, HISTORY, DIM, TOP_K, OPSET = 60, 12, 16, 10, 21
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {"head_dim": 16}, "phi3": {}, "gemma2": {"head_dim": 16}, "olmo2": {},
}  # fmt: skip
FLOAT_PRECISIONS = ("fp32", "int8", "int8-accurate", "bf16", "fp16")
TENSORRT_PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8", "int4")
GROUP = 32


def recommender(family: str, **options: Any) -> SequentialRecommender:
    """Two layers of width 64 of a family, every weight random."""
    decoder = {"max_position_embeddings": 256} | FAMILIES[family]
    shape = {"num_items": ITEMS, "item_dim": DIM, "history": HISTORY}
    return randomised(random_models.recommender(family, decoder, **shape, **options))


def randomised(model: Recommender) -> Any:
    """The model with random weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def codes_of(model: Recommender, bits: int) -> dict[str, Codes]:
    """The linear layers as a quantized model has them."""
    return {
        name: rounded(layer.weight.detach().numpy(), bits=bits, group_size=GROUP)
        for name, layer in linear_layers(model).items()
    }


def with_table(bits: int) -> SequentialRecommender:
    """A model whose item table is stored as codes."""
    model = recommender("llama")
    weight = model.get_parameter("item_embeddings.weight").detach()
    table = QuantizedTable(*weight.shape, bits=bits)
    scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = (weight / scale).round().to(torch.int8)
    if bits == 4:
        low, high = (codes + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        codes = low | (high << 4)
    table.load_state_dict({"codes": codes, "scale": scale})
    model.item_embeddings = table
    return model


def graphs() -> Iterator[tuple[str, ModelProto]]:
    """Name and graph of each combination."""

    def both(name: str, model: Recommender, *how: Any) -> Iterator[tuple[str, ModelProto]]:
        for kind, graph in zip(("plain", "masked"), both_graphs(model, *how), strict=True):
            yield f"{name}, {kind}", graph

    for layout in ("packed", "padded"):
        for family in FAMILIES:
            yield from both(f"{family}, {layout}", recommender(family), layout, TOP_K, OPSET)
        llama = recommender("llama", prefix_length=2, suffix_length=1)
        for precision in FLOAT_PRECISIONS:
            how = (layout, TOP_K, OPSET, precision)
            yield from both(f"llama with a prompt, {layout}, {precision}", llama, *how)
        sasrec = randomised(
            Sasrec(SasrecModelConfig(num_items=ITEMS, item_dim=DIM, history=HISTORY))
        )
        for precision in ("fp32", "int8"):
            how = (layout, TOP_K, OPSET, precision)
            yield from both(f"sasrec, {layout}, {precision}", sasrec, *how)
        for bits, precision in ((4, "int4"), (8, "int8-accurate")):
            for family in ("llama", "phi3"):
                model = recommender(family)
                own = codes_of(model, bits)
                how = (layout, TOP_K, OPSET, precision, own)
                yield from both(f"{family}, {layout}, codes of {bits} bits", model, *how)
            how = (layout, TOP_K, OPSET)
            yield from both(f"llama, {layout}, table of {bits} bits", with_table(bits), *how)
    for form in ("int8+rescore", "int4+rescore"):
        how = ("packed", TOP_K, OPSET, "fp32", None, form)
        yield from both(f"llama, packed, {form}", recommender("llama"), *how)
    for precision in TENSORRT_PRECISIONS:
        model = recommender("llama")
        own = codes_of(model, 4) if precision == "int4" else {}
        scales = dict.fromkeys(linear_layers(model), 0.01)
        yield f"llama, tensorrt, {precision}", typed_graph(model, TOP_K, precision, own, scales)


def digest(model: ModelProto) -> str:
    """SHA-256 of a graph without its names."""
    opsets = sorted((each.domain, each.version) for each in model.opset_import)
    return _hash(opsets, _outputs(model.graph, {}), [_kind(one) for one in model.graph.input])


def _outputs(graph: GraphProto, outside: Mapping[str, str]) -> list[str]:
    """Digests of what a graph gives, in terms of what it takes."""
    values = dict(outside) | {"": "none"}
    values |= {one.name: _hash("input", _kind(one), one.name) for one in graph.input}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        values[tensor.name] = _hash("constant", tensor.data_type, array.shape, array.tobytes())
    for node in graph.node:
        of_node = _node(node, values)
        values |= {name: _hash(of_node, at) for at, name in enumerate(node.output)}
    return [values[one.name] for one in graph.output]


def _node(node: NodeProto, values: Mapping[str, str]) -> str:
    attributes = []
    for attribute in sorted(node.attribute, key=lambda one: one.name):
        if attribute.type == AttributeProto.GRAPH:
            attributes.append((attribute.name, _outputs(attribute.g, values)))
        else:
            attributes.append((attribute.name, attribute.SerializeToString(deterministic=True)))
    return _hash(node.domain, node.op_type, attributes, [values[name] for name in node.input])


def _kind(value: Any) -> bytes:
    return bytes(value.type.SerializeToString(deterministic=True))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def main() -> None:
    """Print the digests, keep or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="file to keep the digests in")
    parser.add_argument("--compare", type=Path, help="file of digests to compare with")
    asked = parser.parse_args()
    digests = {}
    for name, graph in graphs():
        digests[name] = digest(graph)
        print(digests[name][:16], f"{len(graph.graph.node):5} nodes ", name, flush=True)
    if asked.write:
        asked.write.write_text(json.dumps(digests, indent=1) + "\n")
    if asked.compare:
        before = json.loads(asked.compare.read_text())
        names = before.keys() | digests.keys()
        other = sorted(name for name in names if before.get(name) != digests.get(name))
        print(f"{len(names) - len(other)} of {len(names)} graphs are equal but for names")
        raise SystemExit("different: " + "; ".join(other) if other else 0)


if __name__ == "__main__":
    main()
