"""Every engine beside the teacher as it is usually run: ``python benchmarks/inference.py``.

The teacher is all 30 layers of SmolLM2's shape in PyTorch (SDPA, padded to 50, as the official
SLMRec code runs it); beside it the 4-layer student the same way, packed, and compiled, the engines
of the student, one of them padded (standard operators only), and those of a pruned one. Weights are
random: what an engine loses in ranking is measured by ``slmc run stack``. ``--json FILE`` writes
the numbers; ``--catalogue`` times a million items instead, of ``--item-dim`` numbers each (64; the
paper has 128); ``--spinning`` lets the threads of engines spin while they compute an answer, as
those of PyTorch always do.

Lengths are those of Amazon Beauty if ``SLMC_DATA`` names the folder of its log, else drawn like
them, and 50 for every history. Each round asks all contenders for the same histories in turn.
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
from slmc.export.runtime.bench import Contender, contender, turn
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
"""Calls of a round, by batch; the middle one counts. As in ``slmc bench`` they are asked again
until caches have settled."""
PAUSE_S = 0.02
"""Before a contender's calls: the threads of PyTorch go on spinning for a while after theirs."""
MILLION = 1_000_000
OF_MILLION = (1, 32)
"""Batches over a million items: a larger one's scores alone are a gigabyte a session."""
Draw = Callable[[], list[np.ndarray]]
For = Callable[[Draw], tuple[Contender, str]]
"""Made ready for batches of a size, and the sessions that it answers in."""


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
    made = random_models.recommender(decoder=SMOLLM2 | sizes, **shape)
    with torch.no_grad():
        made.item_embeddings.weight[1:].normal_()
    return made


def plain(made: SequentialRecommender, compiled: bool = False) -> For:
    """A model in PyTorch, padded."""
    run = PlainModel(made, TOP_K)
    if compiled:
        made.backbone.forward = torch.compile(made.backbone.forward, dynamic=False)
    return lambda _: (Contender(run.top), "")


def packed(made: SequentialRecommender) -> For:
    """A model in PyTorch that computes no padding."""

    @torch.inference_mode()
    def top(histories: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        items = made.item_vectors()
        users = made.user_vectors(torch.from_numpy(pad_left(histories)).to(items.device))
        values, rows = torch.topk(users @ items[1:].T, TOP_K)
        return rows.cpu().numpy() + 1, values.float().cpu().numpy()

    return lambda _: (Contender(top), "")


def engine(
    folder: Path,
    made: SequentialRecommender,
    precision: str,
    table: str = "fp32",
    layout: str = "packed",
    *,
    spinning: bool,
) -> For:
    """An engine in ONNX Runtime."""
    own = four_bits(made) if precision == "int4" else {}
    serialize.save(to_onnx(made, layout, TOP_K, OPSET, precision, own, table), folder / GRAPH)
    describe(folder, made, precision, layout)
    sessions = Probe(folder, torch.get_num_threads(), spinning=spinning)

    def ready(draw: Draw) -> tuple[Contender, str]:
        chosen = sessions.choose(lambda: [draw()])
        return contender(sessions, chosen), f"{chosen.latency} / {chosen.throughput}"

    return ready


def four_bits(made: SequentialRecommender) -> dict[str, Codes]:
    """Codes of the form that ``slmc quantize --bits 4 --group_size 64`` gives, by layer."""
    return {
        name: rounded(layer.weight.detach().numpy(), bits=4, group_size=64)
        for name, layer in linear_layers(made).items()
    }


def describe(folder: Path, made: SequentialRecommender, precision: str, layout: str) -> None:
    """Write what an engine has to say of itself."""
    described = {
        "layout": layout,
        "top_k": TOP_K,
        "opset": OPSET,
        "precision": precision,
        "history": LENGTH,
        "num_items": made.config.num_items,
        "source": "",
    }
    (folder / "engine.json").write_text(json.dumps(described))


def contenders(place: Path, spinning: bool) -> dict[str, For]:
    """What is timed; the first is what all are compared with."""
    onnx = partial(engine, spinning=spinning)
    student, pruned = model(4), model(4, heads=6, kv_heads=2, mlp=1152)
    found = {
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
        ready = plain(model(4), compiled=True)
        ready(list)[0].top([np.ones(3, dtype=np.int32)])
        found["student, torch.compile"] = ready
    except Exception as error:
        print("torch.compile is left out:", str(error).splitlines()[0])
    return found


def timed(
    asked: Mapping[str, Contender], draw: Draw, rounds: int, calls: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of a call and histories a second of each round, all contenders in turn."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in asked}
    for number in range(rounds + 1):
        batches = [draw() for _ in range(calls)]
        for name, one in asked.items():
            time.sleep(PAUSE_S)
            took, rate = turn(one, batches)
            if number:  # the first warms up
                taken[name][0].append(statistics.median(took))
                taken[name][1].append(rate)
    return taken


def students(
    contenders: Callable[[Path], Mapping[str, For]], batches: list[int]
) -> list[dict[str, object]]:
    """The whole table: a row for each contender, batch and kind of lengths."""
    rng, rows = np.random.default_rng(0), []
    known = lengths()
    with tempfile.TemporaryDirectory() as place:
        asked = contenders(Path(place))
        for kind, sizes in (("Beauty", known), ("full", np.full(100, LENGTH))):
            for batch in batches:

                def draw(sizes: np.ndarray = sizes, batch: int = batch) -> list[np.ndarray]:
                    chosen = rng.choice(sizes, batch)
                    return [rng.integers(1, ITEMS + 1, n).astype(np.int32) for n in chosen]

                print(f"\n{kind} lengths, batch {batch}")
                rows += shown(asked, draw, batch, {"lengths": kind})
    return rows


def shown(
    asked: Mapping[str, For], draw: Draw, batch: int, more: Mapping[str, object]
) -> list[dict[str, object]]:
    """Time all, print a line for each, and give the lines as rows."""
    ready = {name: one(draw) for name, one in asked.items()}
    ones = {name: one for name, (one, _) in ready.items()}
    taken = timed(ones, draw, ROUNDS[batch], CALLS[batch])
    first, base = (np.array(part) for part in next(iter(taken.values())))
    rows: list[dict[str, object]] = []
    for name, (took, rates) in taken.items():
        low, mid, high = np.quantile(first / np.array(took), (0.1, 0.5, 0.9))
        rate = float(np.median(np.array(rates) / base))
        median = 1e3 * float(np.median(took))
        print(
            f"  {name:28} {median:10.2f} ms {mid:6.1f}x [{low:.1f}, {high:.1f}]"
            f" {np.median(rates):9.0f} /s {rate:6.1f}x   {ready[name][1]}"
        )
        row = {"contender": name, "batch": batch, "median_ms": median, "ratio": float(mid)}
        row |= {"range": [float(low), float(high)], "per_s": float(np.median(rates))}
        rows.append(row | {"rate_ratio": rate, "sessions": ready[name][1]} | more)
    return rows


def catalogue(batches: list[int], item_dim: int, spinning: bool) -> list[dict[str, object]]:
    """A million items: PyTorch, the float table, and tables of few bits that are scored again."""
    onnx = partial(engine, spinning=spinning)
    made = model(4, items=MILLION, item_dim=item_dim)
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as place:
        asked = {
            "PyTorch": plain(model(4, items=MILLION, item_dim=item_dim)),
            "ONNX, float table": onnx(Path(place) / "fp32", made, "fp32"),
            "ONNX, int8+rescore": onnx(Path(place) / "table", made, "fp32", "int8+rescore"),
            "ONNX, int4+rescore": onnx(Path(place) / "four", made, "fp32", "int4+rescore"),
            "ONNX int8, float table": onnx(Path(place) / "int8-table", made, "int8"),
            "ONNX int8, int4+rescore": onnx(Path(place) / "int8", made, "int8", "int4+rescore"),
        }
        for batch in batches:

            def draw(batch: int = batch) -> list[np.ndarray]:
                return [rng.integers(1, MILLION + 1, 20).astype(np.int32) for _ in range(batch)]

            print(f"\n{MILLION:,} items of {item_dim} numbers, batch {batch}")
            rows += shown(asked, draw, batch, {"items": MILLION, "item_dim": item_dim})
            rows += overlaps(asked, [draw() for _ in range(max(1, 64 // batch))])
    return rows


def overlaps(asked: Mapping[str, For], batches: list[list[np.ndarray]]) -> list[dict[str, object]]:
    """How many of PyTorch's best items each gives, and of those over the table in floats."""
    answers = {}
    for name, one in asked.items():
        ready, _ = one(lambda: batches[0])
        answers[name] = np.concatenate([ready.top(histories)[0] for histories in batches])
    rows: list[dict[str, object]] = []
    for name, found in answers.items():
        floats = answers.get(f"{name.split(',')[0]}, float table", found)
        same, table = shared(found, answers["PyTorch"]), shared(found, floats)
        print(f"  {name:28} overlap@{TOP_K} {same:.4f}, of its decoder over floats {table:.4f}")
        rows.append({"contender": name, "overlap": same, "table_overlap": table, "n": len(found)})
    return rows


def shared(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of best items ``[B, k]`` that two have in common."""
    both = [len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(both)) / TOP_K


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--catalogue", action="store_true")
    parser.add_argument("--item-dim", type=int, default=64, help="of --catalogue")
    parser.add_argument("--spinning", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", choices=list(ROUNDS))
    given = parser.parse_args()
    batches = given.batch or list(OF_MILLION if given.catalogue else ROUNDS)
    if given.catalogue and not set(batches) <= set(OF_MILLION):
        parser.error(f"--catalogue takes a --batch of {OF_MILLION}")
    print(machine())
    spinning = given.spinning
    if given.catalogue:
        found = catalogue(batches, given.item_dim, spinning)
    else:
        found = students(partial(contenders, spinning=spinning), batches)
    if given.json:
        told = {"machine": machine(), "spinning": spinning, "rows": found}
        given.json.write_text(json.dumps(told, indent=2) + "\n")
