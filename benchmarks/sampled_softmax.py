"""The sampled softmax against the full one: ``python benchmarks/sampled_softmax.py``.

Three tables. (1) SASRec, trained with the full and with sampled softmaxes: validation NDCG and
cross-entropy (over all items, for all of them) and CPU seconds. (2) The loss of the model of the
full softmax on one batch: difference of the sampled to the full loss, mean and standard deviation
over draws, by the number of negatives; beside it the same for the usual sampled softmax, whose sum
has the position's own target and uniform negatives, but not the targets of the batch. (3) A
training step over catalogues of 100,000 and 1,000,000 items: CPU seconds and peak memory, each in
a process of its own.

``--only 1,2`` or ``--only 3`` chooses tables, ``--log``, ``--users``, ``--epochs`` and
``--negatives`` make it smaller, ``--json FILE`` writes the numbers.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import machine
from torch import Tensor

from slmc.artefact import Artefact
from slmc.data.batches import pack
from slmc.data.config import PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.prepare import prepare
from slmc.model.loading import load_model
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.training import catalogue
from slmc.training.config import SasrecConfig
from slmc.training.next_item import NextItem, layout, training_rows
from slmc.training.optimizer import adamw, clip_gradients
from slmc.training.pretrain import sasrec
from slmc.training.softmax import Softmax
from slmc.training.types import Batch

DRAWS, ROWS, HISTORY, WIDTH = 10, 64, 50, 64
STEPS = 3


def batch_of(rows: Any, count: int) -> Batch:
    """The first rows of a packing as a batch."""
    index = np.arange(min(count, len(rows.item_ids)))
    arrays = (rows.item_ids, rows.targets, rows.positions, rows.segments)
    return Batch(*(torch.from_numpy(a[index]) for a in arrays), index=index, packing=0)


def train(data: Artefact, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a SASRec; returns its validation and CPU seconds."""
    began = time.process_time()
    made = sasrec(SasrecConfig.model_validate(settings), {"data": data}, out)
    seconds = time.process_time() - began
    last = json.loads(made.file("metrics.json").read_bytes())["epochs"][-1]
    return {"ndcg": last["valid_ndcg"], "ce": last["valid_ce"], "cpu_s": seconds, "model": made}


def differences(data: Dataset, model: Artefact, negatives: list[int]) -> list[dict[str, Any]]:
    """Sampled minus full loss of one batch."""
    sas = load_model(model)
    batch = batch_of(training_rows(SasrecConfig(), data).pack(0), ROWS)
    torch.manual_seed(0)
    with torch.no_grad():
        known = batch.targets.flatten() > 0
        queries = sas.hidden_states(batch.tokens.flatten(), layout(batch))[known]
        targets, items = batch.targets.flatten()[known], sas.item_vectors()
        full = catalogue.cross_entropy(queries, items, targets).item()
        rows = []
        for count in negatives:
            rule = Softmax(data.num_items, count)
            ours = [_sampled(queries, items, targets, rule) - full for _ in range(DRAWS)]
            usual = [_usual(queries, items, targets, count) - full for _ in range(DRAWS)]
            rows.append(
                {
                    "negatives": count,
                    "full": full,
                    "ours": (statistics.mean(ours), statistics.stdev(ours)),
                    "usual": (statistics.mean(usual), statistics.stdev(usual)),
                }
            )
    return rows


def _sampled(queries: Tensor, items: Tensor, targets: Tensor, rule: Softmax) -> float:
    drawn = rule.draw(targets)
    loss = catalogue.cross_entropy(queries, drawn.select(items), drawn.targets, drawn.log_weights)
    return loss.item()


def _usual(queries: Tensor, items: Tensor, targets: Tensor, count: int) -> float:
    """Own target and uniform negatives, which all positions share."""
    total = len(items) - 1
    rows = torch.randperm(total)[:count] + 1
    own = (queries * items[targets]).sum(dim=1, keepdim=True)
    others = queries @ items[rows].T + math.log((total - 1) / count)
    others[rows[None] == targets[:, None]] = -math.inf
    return (torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]).mean().item()


def step_costs(items: int, negatives: int | None, queue: "Queue[dict[str, float]]") -> None:
    """Put CPU seconds of a step and the peak memory into the queue; table and moments included."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    users = [rng.integers(1, items + 1, HISTORY + 1).astype(np.int32) for _ in range(ROWS)]
    batch = batch_of(pack(users, HISTORY, rng), ROWS)
    model = Sasrec(SasrecModelConfig(num_items=items, item_dim=WIDTH, history=HISTORY))
    task = NextItem(model, Softmax(items, negatives)).train()
    config = SasrecConfig()
    optimizer = adamw(
        [{"params": list(model.parameters()), "lr": 1e-3}], config, torch.device("cpu")
    )
    seconds = []
    for _ in range(STEPS + 1):
        began = time.process_time()
        task(batch)["total"].backward()
        clip_gradients(list(model.parameters()), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put({"cpu_s": statistics.median(seconds[1:]), "peak_mb": peak})


def costs(catalogues: list[int], full_up_to: int) -> list[dict[str, Any]]:
    """Measure steps in processes of their own."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for items in catalogues:
        for negatives in (8192, None):
            if negatives is None and items > full_up_to:
                continue
            queue: Any = context.Queue()
            process = context.Process(target=step_costs, args=(items, negatives, queue))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"the process for {items} items ended with {process.exitcode}")
            rows.append({"items": items, "negatives": negatives} | queue.get())
            print(
                "{items:,} items, negatives {negatives}: {cpu_s:.2f} s a step, "
                "{peak_mb:,.0f} MB".format(**rows[-1]),
                flush=True,
            )
    return rows


def main() -> None:
    """Measure, print, write."""
    shared = Path(os.environ.get("SLMC_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=shared / "amazon-beauty.txt.gz")
    parser.add_argument("--users", type=int, help="take a sample of the users")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--negatives", default="512,2048")
    parser.add_argument("--only", default="1,2,3", help="tables")
    parser.add_argument("--catalogues", default="100000,1000000")
    parser.add_argument("--full-up-to", type=int, default=100_000, help="items of a full step")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine()}
    print(report["machine"])
    negatives = [int(one) for one in options.negatives.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SLMC_CACHE"] = name
        if "1" in options.only or "2" in options.only:
            source = PrepareConfig(source=str(options.log), core=5, users=options.users)
            data = prepare(source, {}, folder / "data")
            ways = {"full": {"softmax": "full"}} | {
                str(n): {"softmax": "sampled", "negatives": n}
                for n in negatives
                if "1" in options.only
            }
            trained = {}
            for way, settings in ways.items():
                trained[way] = train(data, {"epochs": options.epochs} | settings, folder / way)
                print(
                    "{way:>8}: validation NDCG {ndcg:.4f}, ce {ce:.3f}, {cpu_s:.0f} s".format(
                        way=way, **trained[way]
                    ),
                    flush=True,
                )
            report["trained"] = {
                way: {k: v for k, v in one.items() if k != "model"} for way, one in trained.items()
            }
        if "2" in options.only:
            opened = Dataset.open(data)
            counts = [n for n in (64, 256, 1024, 4096, 8192) if n < opened.num_items]
            report["differences"] = differences(opened, trained["full"]["model"], counts)
            for row in report["differences"]:
                ours, usual = row["ours"], row["usual"]
                print(
                    f"{row['negatives']:>8} negatives: {ours[0]:+.4f} ± {ours[1]:.4f}; without "
                    f"the batch's targets {usual[0]:+.4f} ± {usual[1]:.4f}"
                )
        if "3" in options.only:
            catalogues = [int(one) for one in options.catalogues.split(",")]
            report["steps"] = costs(catalogues, options.full_up_to)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
