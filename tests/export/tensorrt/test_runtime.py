"""Running a plan: with a fake TensorRT, and for real on a GPU (mark ``gpu``)."""

import ctypes
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from answers import histories
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.errors import BrokenRunError
from slmc.export.config import ExportConfig, TensorrtConfig
from slmc.export.export import export
from slmc.export.runtime.engine import Engine, read_description
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt import runtime as tensorrt_runtime
from slmc.export.tensorrt.flavours import FLAVOURS
from slmc.export.tensorrt.plan import Profile
from slmc.export.tensorrt.runtime import Entry, TensorrtEngine

Place = Callable[[str], Path]
ITEMS, HISTORY, TOP_K = 30, 12, 10
"""As conftest.py makes them."""
PROFILES = (Profile(1, HISTORY), Profile(16, HISTORY))


class Context:
    """A fake context: reads and writes the given addresses, and computes with ONNX Runtime."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.at = engine, dict[str, int]()
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.profile: int | None = None

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile = number
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = PROFILES[self.profile or 0]
        self.shape = shape
        return shape[0] <= profile.batch and shape[1] <= profile.length

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.at[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append((self.profile or 0, self.shape))
        item_ids = self._tensor("item_ids", ctypes.c_int64, self.shape)
        items, scores = self.engine.answer(item_ids)
        self._tensor("top_items", ctypes.c_int64, items.shape)[:] = items
        self._tensor("top_scores", ctypes.c_float, scores.shape)[:] = scores
        return True

    def _tensor(self, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        memory = (kind * int(np.prod(shape))).from_address(self.at[name])
        return np.ctypeslib.as_array(memory).reshape(shape)


@pytest.fixture
def fake_engine(packed: Artefact, monkeypatch: pytest.MonkeyPatch) -> TensorrtEngine:
    engine, contexts = TensorrtEngine.__new__(TensorrtEngine), list[Context]()
    engine.file, engine.description = packed.path / "plan", read_description(packed.path)
    engine.device = torch.device("cpu")
    engine.entry = Entry(FLAVOURS["tensorrt"], "10.13", "9.0", "bf16", PROFILES, "")
    answers = Engine.open(packed, threads=1)

    def create() -> Context:
        contexts.append(Context(answers))
        return contexts[-1]

    engine.engine = SimpleNamespace(create_execution_context=create, contexts=contexts)
    engine._per_thread = threading.local()
    stream = SimpleNamespace(cuda_stream=7)
    current = [torch.device("meta")]  # another thread's GPU

    @contextmanager
    def device(one: torch.device) -> Iterator[None]:
        current.append(one)
        yield
        current.pop()

    def current_stream() -> SimpleNamespace:
        assert current[-1] == engine.device
        return stream

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    logger = SimpleNamespace(errors=["no  such\nshape"])
    monkeypatch.setattr(tensorrt_runtime, "logger_of", lambda _: logger)
    return engine


def test_tensors_are_read_and_written_in_place(
    fake_engine: TensorrtEngine, packed: Artefact
) -> None:
    item_ids = torch.from_numpy(histories(9, 5, ITEMS))
    items, scores = fake_engine.top(item_ids)
    expected = Engine.open(packed, threads=1).answer(item_ids.numpy())
    assert (items.numpy() == expected[0]).all() and (scores.numpy() == expected[1]).all()
    (context,) = fake_engine.engine.contexts
    assert context.at["item_ids"] == item_ids.data_ptr()
    assert context.at["top_items"] == items.data_ptr()
    fake_engine.top(item_ids[:1])
    fake_engine.top(torch.from_numpy(histories(16, HISTORY, ITEMS)))
    assert context.calls == [(1, (9, 5)), (0, (1, 5)), (1, (16, HISTORY))]
    transposed = torch.from_numpy(histories(5, 9, ITEMS)).T  # copied, since it is not contiguous
    assert (fake_engine.top(transposed)[0] == fake_engine.top(transposed.contiguous())[0]).all()


def test_every_thread_has_its_own_context(fake_engine: TensorrtEngine) -> None:
    together = threading.Barrier(4)

    def run(number: int) -> bool:
        together.wait()
        rows = histories(1 + number, HISTORY, ITEMS)
        answers = [fake_engine.answer(rows)[0] for _ in range(5)]
        return all((items == answers[0]).all() for items in answers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
    contexts = fake_engine.engine.contexts
    assert sorted(len(context.calls) for context in contexts) == [5, 5, 5, 5]
    assert all(len(set(context.calls)) == 1 for context in contexts)


def test_large_batches_are_split_and_long_histories_cut(
    fake_engine: TensorrtEngine, packed: Artefact
) -> None:
    rows = histories(40, HISTORY + 8, ITEMS)
    items, _ = fake_engine.answer(rows)
    assert (items == Engine.open(packed, threads=1).answer(rows)[0]).all()
    shapes = [shape for _, shape in fake_engine.engine.contexts[0].calls]
    assert shapes == [(16, HISTORY), (16, HISTORY), (8, HISTORY)]


def test_histories_without_items_are_one_item_of_padding(
    fake_engine: TensorrtEngine, packed: Artefact
) -> None:
    onnx_engine = Engine.open(packed, threads=1)
    for shape in ((3, 0), (3, 4), (1, 0), (0, 5), (0, 0)):
        rows = np.zeros(shape, dtype=np.int64)
        for ours, expected in zip(fake_engine.answer(rows), onnx_engine.answer(rows), strict=True):
            assert ours.shape == (shape[0], TOP_K) and ours.dtype == expected.dtype
            assert (ours == expected).all()
    assert {shape for _, shape in fake_engine.engine.contexts[0].calls} == {(3, 1), (3, 4), (1, 1)}


def test_invalid_inputs(fake_engine: TensorrtEngine) -> None:
    with pytest.raises(ValueError, match=r"must be int64 \[B, L\] on cpu, not torch.int32"):
        fake_engine.top(torch.ones((1, 2), dtype=torch.int32))
    with pytest.raises(ValueError, match=r"17 x 2 fits no profile of the plan \(1 x 12, 16 x 12\)"):
        fake_engine.top(torch.ones((17, 2), dtype=torch.int64))
    fake_engine.entry = Entry(FLAVOURS["tensorrt"], "", "", "bf16", (Profile(64, 12),), "")
    with pytest.raises(BrokenRunError) as caught:  # the entry has other profiles than the plan
        fake_engine.top(torch.ones((17, 2), dtype=torch.int64))
    assert str(caught.value) == f"{fake_engine.file}: TensorRT cannot run it: no such shape"


@pytest.fixture(scope="module")
def flavour() -> str:
    gpu = flavours.driver().capability
    for name, one in FLAVOURS.items():
        if gpu is not None and one.runs_on(gpu) and flavours.try_flavour(one).builds:
            return name
    pytest.skip("no flavour of TensorRT runs here")


def exported(flavour: str, precision: str, inputs: dict[str, Artefact], place: Place) -> Artefact:
    options = {"flavour": flavour, "precision": precision, "batch": (1, 16)}
    settings = TensorrtConfig.model_validate(options)
    config = ExportConfig(top_k=TOP_K, formats=("tensorrt",), tensorrt=settings)
    return export(config, inputs, place(precision))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
def test_a_plan_gives_the_answers_of_its_model(
    precision: str, flavour: str, dataset: Artefact, model: Artefact, place: Place
) -> None:
    engine = exported(flavour, precision, {"data": dataset, "model": model}, place)
    entry = json.loads((engine.path / "engine.json").read_text())["tensorrt"]
    assert entry["executed"]["overlap"] >= entry["executed"]["allowed"]["min_overlap"]
    plan = TensorrtEngine.open(engine)
    item_ids = torch.from_numpy(histories(16, HISTORY, ITEMS)).cuda()
    expected = [one.clone() for one in plan.top(item_ids)]
    with ThreadPoolExecutor(4) as pool:
        for items, scores in pool.map(lambda _: plan.top(item_ids), range(16)):
            assert torch.equal(items, expected[0]) and torch.equal(scores, expected[1])


@pytest.mark.gpu
def test_a_captured_shape_gives_the_same_answers(
    flavour: str, dataset: Artefact, model: Artefact, place: Place
) -> None:
    engine = exported(flavour, "bf16", {"data": dataset, "model": model}, place)
    plan = TensorrtEngine.open(engine)
    for shape in ((1, HISTORY), (16, 5)):
        captured = plan.capture(*shape)
        for seed in range(3):
            item_ids = torch.from_numpy(np.roll(histories(*shape, ITEMS), seed, axis=0)).cuda()
            assert torch.equal(captured.top(item_ids)[0], plan.top(item_ids)[0])
