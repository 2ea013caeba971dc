"""Latency and throughput of all engines and of the teacher: ``python benchmarks/inference.py``.

The baseline is the teacher with all 30 layers of SmolLM2's shape in PyTorch (SDPA, padded to 50, as
in the official SLMRec code). The contenders are the 4-layer student in PyTorch (padded, packed and
compiled), the engines of the student (one of them padded, with standard operators only), and the
engines of a pruned student. Weights are random; ``slmc run stack`` measures what an engine loses in
ranking. ``--json FILE`` writes the numbers. ``--catalogue`` times a million items instead, with
vectors of ``--item-dim`` numbers (64; the paper has 128). ``--spinning`` lets engine threads spin
while they compute an answer, as those of PyTorch always do.

Lengths are those of Amazon Beauty if ``SLMC_DATA`` names the folder of its log, else drawn from a
similar distribution, and then 50 for every history. In each round all contenders answer the same
histories, interleaved.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from packing import LENGTH, lengths
from timing import machine

from slmc.data.batches import pad_left
from slmc.export.graph import serialize
from slmc.export.graph.optimize import to_onnx
from slmc.export.reference.precision import linear_layers
from slmc.export.runtime.bench import Contender, engine_contender, time_calls
from slmc.export.runtime.engine import GRAPH
from slmc.export.runtime.pytorch import PlainModel
from slmc.export.runtime.sessions import Probe
from slmc.model import random_models
from slmc.model.codes import Codes, rounded
from slmc.model.random_models import SMOLLM2
from slmc.model.recommender import SequentialRecommender

ITEMS, TOP_K, OPSET = 12_101, 20, 21
ROUNDS = {1: 12, 32: 5, 256: 2}
"""Rounds by batch."""
CALLS = {1: 9, 32: 3, 256: 1}
"""Calls of a round, by batch; their median counts. As in ``slmc bench`` they are repeated until the
caches have settled."""
PAUSE_S = 0.02
"""Pause before a contender's calls, since threads of PyTorch still spin after theirs."""
MILLION = 1_000_000
OF_MILLION = (1, 32)
"""Batches for a million items; the scores of a larger one take a gigabyte per session."""
Draw = Callable[[], list[np.ndarray]]
Setup = Callable[[Draw], tuple[Contender, str]]
"""Prepares a contender for batches of one size; also returns its sessions as text."""


def model(
    layers: int,
    heads: int = 9,
    kv_heads: int = 3,
    mlp: int = 1536,
    items: int = ITEMS,
    item_dim: int = 64,
) -> SequentialRecommender:
    """Random layers of SmolLM2's width."""
    torch.manual_seed(layers)
    sizes = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "intermediate": mlp}
    shape = {"num_items": items, "item_dim": item_dim}
    recommender = random_models.recommender(decoder=SMOLLM2 | sizes, **shape)
    with torch.no_grad():
        recommender.item_embeddings.weight[1:].normal_()
    return recommender


def plain(recommender: SequentialRecommender, compiled: bool = False) -> Setup:
    """A model in PyTorch, padded."""
    baseline = PlainModel(recommender, TOP_K)
    if compiled:
        backbone = recommender.backbone
        backbone.forward = torch.compile(backbone.forward, dynamic=False)
    return lambda _: (Contender(baseline.top), "")


def packed(recommender: SequentialRecommender) -> Setup:
    """A model in PyTorch that computes no padding."""

    @torch.inference_mode()
    def top(histories: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        items = recommender.item_vectors()
        users = recommender.user_vectors(torch.from_numpy(pad_left(histories)).to(items.device))
        values, rows = torch.topk(users @ items[1:].T, TOP_K)
        return rows.cpu().numpy() + 1, values.float().cpu().numpy()

    return lambda _: (Contender(top), "")


def engine(
    folder: Path,
    recommender: SequentialRecommender,
    precision: str,
    table: str = "fp32",
    layout: str = "packed",
    *,
    spinning: bool,
) -> Setup:
    """An engine in ONNX Runtime."""
    codes = four_bit_codes(recommender) if precision == "int4" else {}
    graph = to_onnx(recommender, layout, TOP_K, OPSET, precision, codes, table)
    serialize.save(graph, folder / GRAPH)
    write_description(folder, recommender, precision, layout)
    probe = Probe(folder, torch.get_num_threads(), spinning=spinning)

    def setup(draw: Draw) -> tuple[Contender, str]:
        policies = probe.choose(lambda: [draw()])
        return engine_contender(probe, policies), f"{policies.latency} / {policies.throughput}"

    return setup


def four_bit_codes(recommender: SequentialRecommender) -> dict[str, Codes]:
    """The codes of ``slmc quantize --bits 4 --group_size 64``, by layer."""
    return {
        name: rounded(layer.weight.detach().numpy(), bits=4, group_size=64)
        for name, layer in linear_layers(recommender).items()
    }


def write_description(
    folder: Path, recommender: SequentialRecommender, precision: str, layout: str
) -> None:
    """Write the ``engine.json`` of an engine."""
    description = {
        "layout": layout,
        "top_k": TOP_K,
        "opset": OPSET,
        "precision": precision,
        "history": LENGTH,
        "num_items": recommender.config.num_items,
        "source": "",
    }
    (folder / "engine.json").write_text(json.dumps(description))


def contenders(place: Path, spinning: bool) -> dict[str, Setup]:
    """All contenders; the first is the baseline."""
    onnx = partial(engine, spinning=spinning)
    student, pruned = model(4), model(4, heads=6, kv_heads=2, mlp=1152)
    setups = {
        "teacher, 30 layers, PyTorch": plain(model(30)),
        "ONNX fp32": onnx(place / "fp32", student, "fp32"),
        "ONNX int8": onnx(place / "int8", student, "int8"),
        "ONNX fp32, padded": onnx(place / "padded", student, "fp32", layout="padded"),
        "ONNX int8-accurate": onnx(place / "accurate", student, "int8-accurate"),
        "ONNX int4": onnx(place / "int4", student, "int4"),
        "pruned, ONNX fp32": onnx(place / "pruned-fp32", pruned, "fp32"),
        "pruned, ONNX int8": onnx(place / "pruned-int8", pruned, "int8"),
        "pruned, ONNX int4": onnx(place / "pruned-int4", pruned, "int4"),
        "student, 4 layers, PyTorch": plain(model(4)),
        "student, packed, PyTorch": packed(model(4)),
    }
    try:
        setup = plain(model(4), compiled=True)
        setup(list)[0].top([np.ones(3, dtype=np.int32)])
        setups["student, torch.compile"] = setup
    except Exception as error:
        print("torch.compile is skipped:", str(error).splitlines()[0])
    return setups


def time_contenders(
    contenders: Mapping[str, Contender], draw: Draw, rounds: int, calls: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds per call and histories per second of each round, contenders interleaved."""
    timings: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for number in range(rounds + 1):
        batches = [draw() for _ in range(calls)]
        for name, contender in contenders.items():
            time.sleep(PAUSE_S)
            seconds, rate = time_calls(contender, batches)
            if number:  # the first round is a warm-up
                timings[name][0].append(statistics.median(seconds))
                timings[name][1].append(rate)
    return timings


def students(
    contenders: Callable[[Path], Mapping[str, Setup]], batches: list[int]
) -> list[dict[str, object]]:
    """The whole table: one row per contender, batch and kind of lengths."""
    rng, rows = np.random.default_rng(0), []
    beauty = lengths()
    with tempfile.TemporaryDirectory() as place:
        setups = contenders(Path(place))
        for kind, sizes in (("Beauty", beauty), ("full", np.full(100, LENGTH))):
            for batch in batches:

                def draw(sizes: np.ndarray = sizes, batch: int = batch) -> list[np.ndarray]:
                    chosen = rng.choice(sizes, batch)
                    return [rng.integers(1, ITEMS + 1, n).astype(np.int32) for n in chosen]

                print(f"\n{kind} lengths, batch {batch}")
                rows += measure(setups, draw, batch, {"lengths": kind})
    return rows


def measure(
    setups: Mapping[str, Setup], draw: Draw, batch: int, more: Mapping[str, object]
) -> list[dict[str, object]]:
    """Time all contenders, print one line for each, and return the lines as rows."""
    ready = {name: setup(draw) for name, setup in setups.items()}
    contenders = {name: contender for name, (contender, _) in ready.items()}
    timings = time_contenders(contenders, draw, ROUNDS[batch], CALLS[batch])
    base_seconds, base_rates = (np.array(part) for part in next(iter(timings.values())))
    rows: list[dict[str, object]] = []
    for name, (seconds, rates) in timings.items():
        low, mid, high = np.quantile(base_seconds / np.array(seconds), (0.1, 0.5, 0.9))
        rate = float(np.median(np.array(rates) / base_rates))
        median = 1e3 * float(np.median(seconds))
        print(
            f"  {name:28} {median:10.2f} ms {mid:6.1f}x [{low:.1f}, {high:.1f}]"
            f" {np.median(rates):9.0f} /s {rate:6.1f}x   {ready[name][1]}"
        )
        row = {"contender": name, "batch": batch, "median_ms": median, "ratio": float(mid)}
        row |= {"range": [float(low), float(high)], "per_s": float(np.median(rates))}
        rows.append(row | {"rate_ratio": rate, "sessions": ready[name][1]} | more)
    return rows


def catalogue(batches: list[int], item_dim: int, spinning: bool) -> list[dict[str, object]]:
    """A million items: PyTorch, the float table, and quantized tables with rescoring."""
    onnx = partial(engine, spinning=spinning)
    student = model(4, items=MILLION, item_dim=item_dim)
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as place:
        setups = {
            "PyTorch": plain(model(4, items=MILLION, item_dim=item_dim)),
            "ONNX, float table": onnx(Path(place) / "fp32", student, "fp32"),
            "ONNX, int8+rescore": onnx(Path(place) / "table", student, "fp32", "int8+rescore"),
            "ONNX, int4+rescore": onnx(Path(place) / "four", student, "fp32", "int4+rescore"),
            "ONNX int8, float table": onnx(Path(place) / "int8-table", student, "int8"),
            "ONNX int8, int4+rescore": onnx(Path(place) / "int8", student, "int8", "int4+rescore"),
        }
        for batch in batches:

            def draw(batch: int = batch) -> list[np.ndarray]:
                return [rng.integers(1, MILLION + 1, 20).astype(np.int32) for _ in range(batch)]

            print(f"\n{MILLION:,} items of {item_dim} numbers, batch {batch}")
            rows += measure(setups, draw, batch, {"items": MILLION, "item_dim": item_dim})
            rows += overlaps(setups, [draw() for _ in range(max(1, 64 // batch))])
    return rows


def overlaps(
    setups: Mapping[str, Setup], batches: list[list[np.ndarray]]
) -> list[dict[str, object]]:
    """Overlap of the best items with PyTorch's, and with those of the float item table."""
    answers = {}
    for name, setup in setups.items():
        contender, _ = setup(lambda: batches[0])
        answers[name] = np.concatenate([contender.top(histories)[0] for histories in batches])
    rows: list[dict[str, object]] = []
    for name, items in answers.items():
        float_table = answers.get(f"{name.split(',')[0]}, float table", items)
        same, table = shared(items, answers["PyTorch"]), shared(items, float_table)
        print(f"  {name:28} overlap@{TOP_K} {same:.4f}, with the float table {table:.4f}")
        rows.append({"contender": name, "overlap": same, "table_overlap": table, "n": len(items)})
    return rows


def shared(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean share of best items ``[B, k]`` that two contenders have in common."""
    both = [len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(both)) / TOP_K


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--catalogue", action="store_true")
    parser.add_argument("--item-dim", type=int, default=64, help="of --catalogue")
    parser.add_argument("--spinning", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", choices=list(ROUNDS))
    arguments = parser.parse_args()
    batches = arguments.batch or list(OF_MILLION if arguments.catalogue else ROUNDS)
    if arguments.catalogue and not set(batches) <= set(OF_MILLION):
        parser.error(f"--catalogue takes a --batch of {OF_MILLION}")
    print(machine())
    spinning = arguments.spinning
    if arguments.catalogue:
        rows = catalogue(batches, arguments.item_dim, spinning)
    else:
        rows = students(partial(contenders, spinning=spinning), batches)
    if arguments.json:
        report = {"machine": machine(), "spinning": spinning, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
