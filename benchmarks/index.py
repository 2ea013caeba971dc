"""An index of the item vectors against exact search: ``python benchmarks/index.py``.

Compares the indices of ``slmc export --index`` with an engine's exact search over the same items:
recall of the 10 best, latency of the search (user vector in, best items out) and memory. One
thread, all contenders interleaved.

User vectors are real: those of a dataset's test users by a trained model (``--model``, ``--data``;
of the quick start by default). Item vectors are generated with the statistics of the model's item
table, since no log at hand has millions of items: each lies between an item of the table and one of
its 10 nearest, plus noise of half the distance to the nearest, with the norms of the table. So they
form clusters, as the table does; Gaussian vectors would have none, and no index could help.

``--items 1000000 10000000`` sets the numbers of items, ``--kinds`` the indices, ``--tables`` the
forms of the exact table, ``--json FILE`` writes the numbers.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from slmc.artefact import load
from slmc.data.batches import pad_left
from slmc.data.dataset import Dataset
from slmc.export.graph.interface import SCORES, USER_VECTORS
from slmc.export.graph.ir import drop_unused
from slmc.export.graph.rescore import RESCORED, rescore
from slmc.export.index import build, measure
from slmc.export.runtime.engine import session_options
from slmc.export.runtime.vector_index import VectorIndex, import_faiss
from slmc.model.loading import load_model

RUN = Path("runs/quickstart")
TOP_K, NEAR = 10, 10
BATCHES = {1: 100, 32: 20}
"""Rounds by batch."""
CHUNK = 1 << 18


def real_vectors(model: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The item table ``[V, d]`` of a model, and the vectors of the test users."""
    recommender = load_model(load(model))
    histories = Dataset.open(load(data)).targets("test").histories
    padded = torch.from_numpy(pad_left(histories, recommender.config.history))
    with torch.inference_mode():
        parts = [recommender.user_vectors(part).numpy() for part in padded.split(64)]
        return recommender.item_vectors()[1:].numpy(), np.concatenate(parts)


def generate(table: np.ndarray, number: int, file: Path) -> np.ndarray:
    """Write ``number`` item vectors with the statistics of a table, after one row of zeros."""
    rng, width = np.random.default_rng(0), table.shape[1]
    distances = np.linalg.norm(table[:, None] - table[None], axis=2)
    near = np.argsort(distances, axis=1)[:, 1 : NEAR + 1]
    noise = np.take_along_axis(distances, near[:, :1], 1)[:, 0] / 2 / np.sqrt(width)
    norms = np.linalg.norm(table, axis=1)
    vectors = np.memmap(file, np.float32, "w+", shape=(number + 1, width))
    for start in range(1, number + 1, CHUNK):
        size = min(CHUNK, number + 1 - start)
        base = rng.integers(len(table), size=size)
        other = near[base, rng.integers(NEAR, size=size)]
        share = rng.random((size, 1), dtype=np.float32)
        part = (1 - share) * table[base] + share * table[other]
        part += noise[base, None] * rng.standard_normal((size, width), dtype=np.float32)
        length = (1 - share[:, 0]) * norms[base] + share[:, 0] * norms[other]
        vectors[start : start + size] = part * (length / np.linalg.norm(part, axis=1))[:, None]
    vectors.flush()
    return vectors


def exact(vectors: np.ndarray, form: str, file: Path) -> onnxruntime.InferenceSession:
    """The scoring of an engine alone: user vectors in, best rows out."""
    rows, width = vectors.shape
    users = ir.val(USER_VECTORS, ir.DataType.FLOAT, ["batch", width])
    bias = np.zeros(rows, dtype=np.float32)
    bias[0] = -np.inf
    constants = {"table": vectors, "bias": bias, "k": np.array([TOP_K])}
    values = {
        name: ir.val(name, const_value=ir.tensor(value, name=name))
        for name, value in constants.items()
    }
    operands = [users, values["table"], values["bias"]]
    gemm = ir.node("Gemm", operands, {"transB": 1})
    gemm.outputs[0].name = SCORES
    topk = ir.node("TopK", [gemm.outputs[0], values["k"]], num_outputs=2)
    for output, (name, kind) in zip(
        topk.outputs,
        {"top_scores": ir.DataType.FLOAT, "top_items": ir.DataType.INT64}.items(),
        strict=True,
    ):
        output.name, output.dtype = name, kind
    graph = ir.Graph(
        [users], list(topk.outputs), nodes=[gemm, topk], initializers=list(values.values()),
        opset_imports={"": 21, "com.microsoft": 1}, name="scoring",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    if form in RESCORED:
        rescore(graph, vectors, form, TOP_K)
        drop_unused(model)
    ir.save(model, file, external_data=f"{file.name}.data")
    del model, graph, values, constants
    return onnxruntime.InferenceSession(str(file), session_options(1))


def peak_gb() -> float:
    """Peak resident memory of this process so far, files that it has mapped included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(
    vectors: np.ndarray, users: np.ndarray, kinds: list[str], tables: list[str], folder: Path
) -> list[dict[str, Any]]:
    """Build and time all contenders over one set of items."""
    rows: list[dict[str, Any]] = []
    searches = {}
    for form in tables:
        session = exact(vectors, form, folder / f"{form}.onnx")
        searches[form] = lambda batch, session=session: session.run(
            ["top_items"], {USER_VECTORS: batch}
        )[0]
        rows.append({"contender": f"exact, {form}"})
    best = np.concatenate([searches[tables[0]](part) for part in batches(users)])
    for kind in kinds:
        start = time.perf_counter()
        index = build.build(kind, vectors[1:])
        seconds = time.perf_counter() - start
        setting = measure.tune(index, users, best, 0.95)
        found = searched(index, users)
        file = folder / kind
        build.save(index, file)
        row = {"contender": f"index {kind}", "setting": setting, "build_s": round(seconds, 1)}
        row |= {"recall": round(measure.recall(found, best), 4)}
        row |= {"size_mb": round(file.stat().st_size / 1e6, 1)}
        print(row, flush=True)
        rows.append(row)
        searches[kind] = lambda batch, index=index: searched(index, batch)
    for batch, rounds in BATCHES.items():
        timed(searches, users, batch, rounds, rows)
    return rows


def batches(users: np.ndarray, size: int = 16) -> list[np.ndarray]:
    """User vectors in parts whose scores of all items fit into memory."""
    return np.split(users, range(size, len(users), size))


def searched(index: VectorIndex, users: np.ndarray) -> np.ndarray:
    """The rows that an index finds."""
    return index.search(users, TOP_K)[0]


def timed(
    searches: dict[str, Any], users: np.ndarray, batch: int, rounds: int, rows: list[dict[str, Any]]
) -> None:
    """Time the contenders interleaved; each row gets its median and the ratio to the best exact."""
    rng = np.random.default_rng(batch)
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for number in range(rounds + 2):
        drawn = users[rng.choice(len(users), batch, replace=False)]
        names = list(searches)
        for name in reversed(names) if number % 2 else names:
            start = time.perf_counter()
            searches[name](drawn)
            if number > 1:
                seconds[name].append(time.perf_counter() - start)
    exact_forms = [row["contender"].partition(", ")[2] for row in rows if ", " in row["contender"]]
    quickest = min(exact_forms, key=lambda name: float(np.median(seconds[name])))
    for name, row in zip(searches, rows, strict=True):
        ratios = np.divide(seconds[quickest], seconds[name])
        low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        row[f"ms_{batch}"] = round(1e3 * float(np.median(seconds[name])), 3)
        row[f"ratio_{batch}"] = [round(float(one), 2) for one in (low, middle, high)]
        print(
            f"  batch {batch:3} {row['contender']:24} {row[f'ms_{batch}']:9.3f} ms, "
            f"{middle:7.2f} times the speed of exact {quickest} ({low:.2f} to {high:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=RUN / "02-sasrec")
    parser.add_argument("--data", type=Path, default=RUN / "01-prepare")
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["faiss", "hnsw"], choices=["faiss", "hnsw"])
    parser.add_argument("--tables", nargs="+", default=["fp32", *RESCORED])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_faiss().omp_set_num_threads(1)
    table, users = real_vectors(arguments.model, arguments.data)
    machine = f"{platform.machine()}, onnxruntime {onnxruntime.__version__}"
    print(f"{machine}; {len(users)} user vectors, table {table.shape}", flush=True)
    report = []
    for number in arguments.items:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            vectors = generate(table, number, folder / "vectors")
            print(f"\n{number:,} items of {vectors.shape[1]} numbers", flush=True)
            rows = compare(vectors, users, arguments.kinds, arguments.tables, folder)
            print(f"  peak memory {peak_gb():.1f} GB", flush=True)
            report.append({"items": number, "peak_gb": round(peak_gb(), 2), "rows": rows})
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "runs": report}, indent=2) + "\n")
