"""A distilling step on stored teacher states, against running the teacher in every step.

``python benchmarks/teacher_states.py``: a teacher of eight and a student of four layers of
SmolLM2's shape with random weights, 16 rows of 50 tokens, all terms on.
"""

import os
import tempfile

import numpy as np
import torch
from timing import compare, machine

from slmc.data.batches import Rows, pack
from slmc.distill import states
from slmc.distill.config import DistillConfig
from slmc.distill.losses import block_ends
from slmc.distill.task import Distillation
from slmc.distill.teachers import TeacherSignals
from slmc.model import packing, random_models
from slmc.model.device import choose
from slmc.model.random_models import SMOLLM2
from slmc.model.recommender import SequentialRecommender
from slmc.training.softmax import Softmax
from slmc.training.types import Batch

LENGTH, ITEMS, ROUNDS = 50, 1_349, 9
TERMS = {"cosine": 1.0, "norm": 0.1, "supervise": 1.0, "logits": 1.0}


def model(layers: int) -> SequentialRecommender:
    """Random layers of SmolLM2's shape."""
    torch.manual_seed(layers)
    return random_models.recommender(decoder=SMOLLM2 | {"layers": layers}, num_items=ITEMS)


def batch_of(rows: Rows) -> Batch:
    """All rows as one batch."""
    arrays = (rows.item_ids, rows.targets, rows.positions, rows.segments)
    tensors = [torch.from_numpy(array) for array in arrays]
    return Batch(*tensors, index=np.arange(len(rows.item_ids)), packing=0)


def main() -> None:
    """Compare the two ways of taking one optimizer step, without the optimizer."""
    rng = np.random.default_rng(0)
    users = [rng.integers(1, ITEMS + 1, 101).astype(np.int32) for _ in range(8)]
    rows = pack(users, LENGTH, rng)
    placement, teacher, student = choose(), model(8), model(4).train()
    known = states.compute(
        states.Request(teacher, "benchmark", rows, block_ends(8, 4), placement, True, True)
    )
    config = DistillConfig.model_validate({"losses": TERMS})
    signals = TeacherSignals([teacher], [[known]])
    task = Distillation(config, student, signals, Softmax(ITEMS, None))
    batch = batch_of(rows)

    def stored() -> None:
        with torch.autocast("cpu", placement.dtype, enabled=placement.mixed):
            total = task(batch)["total"]
        total.backward()

    def live() -> None:
        layout = packing.rows(batch.segments, batch.positions)
        with torch.no_grad(), torch.autocast("cpu", placement.dtype, enabled=placement.mixed):
            teacher.head(teacher.hidden_states(batch.tokens.flatten(), layout))
        stored()

    print(machine())
    compare(f"step of {len(rows.item_ids)} rows", live, stored, ROUNDS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLMC_CACHE"] = folder
        main()
