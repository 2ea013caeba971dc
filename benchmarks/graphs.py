"""Check that a change of the exporter leaves the graphs equal: ``python benchmarks/graphs.py``.

Small models with random weights are exported in every layout, precision and form of the item table.
The digest of each graph covers operators, attributes, constants and connections, and depends
neither on the names of nodes and values nor on the order of nodes. ``--write FILE`` writes the
digests, ``--compare FILE`` prints which of them differ and exits 1 if any does, ``--only TEXT``
builds just the combinations whose name contains TEXT. All of them take minutes.
"""

import argparse
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from slmc.export.graph.optimize import both_graphs
from slmc.export.reference.precision import linear_layers
from slmc.export.tensorrt.graph import tensorrt_graph
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
    """Return the model with random weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def codes_of(model: Recommender, bits: int) -> dict[str, Codes]:
    """Return the codes of the linear layers, as in a quantized model."""
    return {
        name: rounded(layer.weight.detach().numpy(), bits=bits, group_size=GROUP)
        for name, layer in linear_layers(model).items()
    }


def with_table(bits: int) -> SequentialRecommender:
    """Return a model whose item table is stored as codes."""
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


def combinations() -> Iterator[tuple[str, Callable[[], Iterator[ModelProto]]]]:
    """Yield the name of each combination, and what builds its graphs."""

    def both(model: Recommender, *settings: Any) -> Callable[[], Iterator[ModelProto]]:
        return lambda: both_graphs(model, *settings)

    for layout in ("packed", "padded"):
        usual = (layout, TOP_K, OPSET)
        for family in FAMILIES:
            yield f"{family}, {layout}", both(recommender(family), *usual)
        llama = recommender("llama", prefix_length=2, suffix_length=1)
        for precision in FLOAT_PRECISIONS:
            yield f"llama with a prompt, {layout}, {precision}", both(llama, *usual, precision)
        sasrec = randomised(
            Sasrec(SasrecModelConfig(num_items=ITEMS, item_dim=DIM, history=HISTORY))
        )
        for precision in ("fp32", "int8"):
            yield f"sasrec, {layout}, {precision}", both(sasrec, *usual, precision)
        for bits, precision in ((4, "int4"), (8, "int8-accurate")):
            for family in ("llama", "phi3"):
                model = recommender(family)
                build = both(model, *usual, precision, codes_of(model, bits))
                yield f"{family}, {layout}, codes of {bits} bits", build
            yield f"llama, {layout}, table of {bits} bits", both(with_table(bits), *usual)
    for form in ("int8+rescore", "int4+rescore"):
        settings = ("packed", TOP_K, OPSET, "fp32", None, form)
        yield f"llama, packed, {form}", both(recommender("llama"), *settings)
    for precision in TENSORRT_PRECISIONS:
        yield f"llama, tensorrt, {precision}", functools.partial(_tensorrt, precision)


def _tensorrt(precision: str) -> Iterator[ModelProto]:
    model = recommender("llama")
    layer_codes = codes_of(model, 4) if precision == "int4" else {}
    scales = dict.fromkeys(linear_layers(model), 0.01)
    yield tensorrt_graph(model, TOP_K, precision, layer_codes, scales)


def graphs(only: str) -> Iterator[tuple[str, ModelProto]]:
    """Yield name and graph of each combination whose name contains ``only``."""
    for name, build in combinations():
        if only in name:
            alone = "tensorrt" in name
            for kind, graph in zip(("plain", "masked"), build(), strict=not alone):
                yield name if alone else f"{name}, {kind}", graph


def digest(model: ModelProto) -> str:
    """Return the SHA-256 of a graph without its names."""
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    types = [_type(value) for value in model.graph.input]
    return _hash(opsets, _outputs(model.graph, {}), types)


def _outputs(graph: GraphProto, outer: Mapping[str, str]) -> list[str]:
    """Digests of the outputs of a graph; ``outer`` has those of values around it."""
    values = dict(outer) | {"": "none"}
    values |= {value.name: _hash("input", _type(value), value.name) for value in graph.input}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        values[tensor.name] = _hash("constant", tensor.data_type, array.shape, array.tobytes())
    for node in graph.node:
        of_node = _node(node, values)
        values |= {name: _hash(of_node, index) for index, name in enumerate(node.output)}
    return [values[value.name] for value in graph.output]


def _node(node: NodeProto, values: Mapping[str, str]) -> str:
    attributes = []
    for attribute in sorted(node.attribute, key=lambda each: each.name):
        if attribute.type == AttributeProto.GRAPH:
            attributes.append((attribute.name, _outputs(attribute.g, values)))
        else:
            attributes.append((attribute.name, attribute.SerializeToString(deterministic=True)))
    return _hash(node.domain, node.op_type, attributes, [values[name] for name in node.input])


def _type(value: ValueInfoProto) -> bytes:
    return bytes(value.type.SerializeToString(deterministic=True))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def main() -> None:
    """Print the digests; write or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="file to write the digests to")
    parser.add_argument("--compare", type=Path, help="file of digests to compare with")
    parser.add_argument("--only", default="", help="build only the names that contain this")
    options = parser.parse_args()
    digests = {}
    for name, graph in graphs(options.only):
        digests[name] = digest(graph)
        print(digests[name][:16], f"{len(graph.graph.node):5} nodes ", name, flush=True)
    if options.write:
        options.write.write_text(json.dumps(digests, indent=1) + "\n")
    if options.compare:
        before = json.loads(options.compare.read_text())
        names = {name for name in before if options.only in name} | digests.keys()
        different = sorted(name for name in names if before.get(name) != digests.get(name))
        print(f"{len(names) - len(different)} of {len(names)} graphs are equal but for names")
        raise SystemExit("different: " + "; ".join(different) if different else 0)


if __name__ == "__main__":
    main()
