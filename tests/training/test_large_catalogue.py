"""A training step over a million items allocates nothing of their number."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slmc.config import TrainConfig
from slmc.data.batches import pack
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.model.text_items import TextItems
from slmc.training.next_item import NextItem
from slmc.training.optimizer import adamw, clip_gradients
from slmc.training.softmax import Softmax
from slmc.training.types import Batch

ITEMS, WIDTH, HISTORY, ROWS, NEGATIVES = 1_000_000, 4, 20, 8, 500
CANDIDATES = NEGATIVES + ROWS * HISTORY


class Allocations(TorchDispatchMode):
    """Notes the largest result of any operation, except views and updates of known tensors."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(one, Tensor):
                continue
            dense = one._values() if one.layout == torch.sparse_coo else one
            if dense.untyped_storage().data_ptr() not in self.known:
                size = dense.untyped_storage().nbytes() // dense.element_size()
                if size > self.largest:
                    self.largest, self.operation = size, str(func)
        return out


def batch(items: int) -> Batch:
    rng = np.random.default_rng(0)
    users = [rng.integers(1, items + 1, HISTORY + 1).astype(np.int32) for _ in range(ROWS)]
    rows = pack(users, HISTORY, rng)
    arrays = (rows.item_ids, rows.targets, rows.positions, rows.segments)
    return Batch(*map(torch.from_numpy, arrays), index=np.arange(ROWS), packing=0)


def step(task: NextItem, optimizer: torch.optim.Optimizer, data: Batch) -> None:
    task(data)["total"].backward()
    clip_gradients([p for p in task.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def largest_of(task: NextItem) -> tuple[int, str]:
    """Elements of the largest tensor that a step allocates, after one that makes the moments."""
    optimizer = adamw([{"params": list(task.parameters()), "lr": 1e-3}], TrainConfig(), CPU)
    data = batch(task.softmax.num_items)
    step(task.train(), optimizer, data)
    moments = [t for state in optimizer.state.values() for t in state.values()]
    with Allocations([*task.parameters(), *task.buffers(), *moments]) as seen:
        step(task, optimizer, data)
    return seen.largest, seen.operation


CPU = torch.device("cpu")


def sasrec(items: int) -> Sasrec:
    shape = {"num_items": items, "item_dim": WIDTH, "history": HISTORY, "num_layers": 1}
    return Sasrec(SasrecModelConfig(**shape, num_heads=1))


@pytest.mark.parametrize("kind", ["ids", "hybrid"])
def test_a_sampled_step_allocates_nothing_of_the_size_of_the_catalogue(kind: str) -> None:
    model = sasrec(ITEMS)
    if kind == "hybrid":
        vectors = torch.randn(ITEMS + 1, WIDTH)
        trained = torch.ones(ITEMS + 1, dtype=torch.bool)
        model.item_embeddings = TextItems(vectors, "hybrid", trained)  # type: ignore[assignment]
    largest, operation = largest_of(NextItem(model, Softmax(ITEMS, NEGATIVES)))
    # The logits of all positions, which one chunk holds, are the largest.
    assert largest <= ROWS * HISTORY * CANDIDATES < ITEMS, operation


def test_a_full_step_does() -> None:
    """The measurement sees what it looks for: a full step has logits of all items."""
    few = ITEMS // 10
    largest, _ = largest_of(NextItem(sasrec(few), Softmax(few, None)))
    assert largest >= few * WIDTH
