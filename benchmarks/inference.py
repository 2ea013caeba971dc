"""Every engine beside the teacher as it is usually run: ``python benchmarks/inference.py``.

The teacher is all 30 layers of SmolLM2's shape in PyTorch (SDPA, padded to 50, as the official
SLMRec code runs it); beside it the 4-layer student the same way and compiled, and the engines of
the student and of a pruned one. Weights are random: what an engine loses in ranking stands in
docs/results.md. ``--json FILE`` writes the numbers; ``--catalogue`` times a million items instead.

Lengths are those of Amazon Beauty if ``SLMC_DATA`` names the folder of its log, else drawn like
them, and 50 for every history. Each round asks all contenders for the same histories in turn.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from packing import LENGTH, lengths
from timing import machine
from transformers import LlamaConfig

from slmc.data.batches import pad_left
from slmc.export.onnx import to_onnx
from slmc.export.plain import PlainModel
from slmc.export.runtime import session_options
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

ITEMS, TOP_K, OPSET = 12_101, 20, 21
ROUNDS = {1: 20, 32: 5, 256: 2}
"""Rounds by batch."""
PAUSE_S = 0.02
"""Before each call: the threads of PyTorch go on spinning for a while after theirs."""
MILLION = 1_000_000
Ask = Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]]


def model(
    layers: int, heads: int = 9, kv_heads: int = 3, mlp: int = 1536, items: int = ITEMS
) -> SequentialRecommender:
    """Random layers of SmolLM2's width."""
    torch.manual_seed(layers)
    backbone = LlamaConfig(
        vocab_size=1,
        hidden_size=576,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    made = SequentialRecommender(RecommenderConfig(backbone, num_items=items)).eval()
    with torch.no_grad():
        made.item_embeddings.weight[1:].normal_()
    return made


def plain(made: SequentialRecommender, compiled: bool = False) -> Ask:
    """A model in PyTorch, padded."""
    run = PlainModel(made, TOP_K)
    if compiled:
        made.backbone.forward = torch.compile(made.backbone.forward, dynamic=False)
    return run.top


def engine(made: SequentialRecommender, precision: str, table: str = "fp32") -> Ask:
    """A packed engine in ONNX Runtime."""
    graph = to_onnx(made, "packed", TOP_K, OPSET, precision, table=table)
    options = session_options(threads=torch.get_num_threads())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return lambda histories: session.run(None, {"item_ids": pad_left(histories)})


def contenders() -> dict[str, Ask]:
    """What is timed; the first is what all are compared with."""
    student, pruned = model(4), model(4, heads=6, kv_heads=2, mlp=1152)
    found = {
        "teacher, 30 layers, PyTorch": plain(model(30)),
        "ONNX fp32": engine(student, "fp32"),
        "ONNX int8": engine(student, "int8"),
        "ONNX int8-accurate": engine(student, "int8-accurate"),
        "pruned, ONNX fp32": engine(pruned, "fp32"),
        "pruned, ONNX int8": engine(pruned, "int8"),
        "student, 4 layers, PyTorch": plain(model(4)),
    }
    try:
        compiled = plain(model(4), compiled=True)
        compiled([np.ones(3, dtype=np.int32)])
        found["student, torch.compile"] = compiled
    except Exception as error:
        print("torch.compile is left out:", str(error).splitlines()[0])
    return found


def timed(
    asked: dict[str, Ask], draw: Callable[[], list[np.ndarray]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round, all contenders in turn."""
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for round_number in range(rounds + 1):
        histories = draw()
        for name, ask in asked.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            ask(histories)
            if round_number:  # the first warms up
                taken[name].append(time.perf_counter() - start)
    return taken


def students(batches: list[int]) -> list[dict[str, object]]:
    """The whole table: a row for each contender, batch and kind of lengths."""
    rng, asked, rows = np.random.default_rng(0), contenders(), []
    known = lengths()
    for kind, sizes in (("Beauty", known), ("full", np.full(100, LENGTH))):
        for batch in batches:

            def draw(sizes: np.ndarray = sizes, batch: int = batch) -> list[np.ndarray]:
                chosen = rng.choice(sizes, batch)
                return [rng.integers(1, ITEMS + 1, n).astype(np.int32) for n in chosen]

            taken = timed(asked, draw, ROUNDS[batch])
            first = np.array(next(iter(taken.values())))
            print(f"\n{kind} lengths, batch {batch}")
            for name, seconds in taken.items():
                ratios = first / np.array(seconds)
                low, mid, high = np.quantile(ratios, (0.1, 0.5, 0.9))
                median = 1e3 * float(np.median(seconds))
                print(f"  {name:28} {median:10.2f} ms   {mid:6.1f}x  [{low:.1f}, {high:.1f}]")
                row = {"contender": name, "lengths": kind, "batch": batch, "median_ms": median}
                rows.append(row | {"ratio": float(mid), "range": [float(low), float(high)]})
    return rows


def catalogue() -> list[dict[str, object]]:
    """A million items: PyTorch, the float table, and the 8-bit table that is scored again."""
    made = model(4, items=MILLION)
    asked = {
        "PyTorch": plain(model(4, items=MILLION)),
        "ONNX, float table": engine(made, "fp32"),
        "ONNX, int8+rescore": engine(made, "fp32", table="int8+rescore"),
    }
    rng, rows = np.random.default_rng(0), []
    for batch, rounds in ((1, 15), (32, 3)):

        def draw(batch: int = batch) -> list[np.ndarray]:
            return [rng.integers(1, MILLION + 1, 20).astype(np.int32) for _ in range(batch)]

        taken = timed(asked, draw, rounds)
        histories = draw()
        answers = {name: ask(histories)[0] for name, ask in asked.items()}
        first = np.array(taken["PyTorch"])
        print(f"\n{MILLION:,} items, batch {batch}")
        for name, seconds in taken.items():
            same = np.mean(
                [
                    len(set(a) & set(b)) / TOP_K
                    for a, b in zip(answers[name], answers["PyTorch"], strict=True)
                ]
            )
            ratio = float(np.median(first / np.array(seconds)))
            median = 1e3 * float(np.median(seconds))
            print(f"  {name:28} {median:10.2f} ms   {ratio:6.1f}x   overlap@{TOP_K} {same:.4f}")
            row = {"contender": name, "batch": batch, "median_ms": median}
            rows.append(row | {"ratio": ratio, "overlap": float(same)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--catalogue", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    given = parser.parse_args()
    print(machine())
    found = catalogue() if given.catalogue else students(given.batch)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": found}, indent=2) + "\n")
