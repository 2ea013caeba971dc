"""The limit of the teacher's states: their size is logged, and above it the teacher runs live."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from slmc.artefact import Artefact
from slmc.config import parse_size, size_text
from slmc.data.dataset import Dataset
from slmc.distill import live, states, teachers
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.distill.live import LiveStates
from slmc.distill.sizes import states_bytes
from slmc.model.device import Placement
from slmc.model.loading import load_model
from slmc.training.next_item import training_rows
from slmc.training.types import Epochs

FAST = {"layers": 2, "blocks": 2, "epochs": 2, "rows": 8, "warmup": 2, "dtype": "fp32"}
TERMS = {"cosine": 1.0, "norm": 0.1, "supervise": 1.0, "logits": 1.0}
CPU = Placement(torch.device("cpu"), torch.float32)
HALF_ULP = 2.0**-10
"""Live and stored states are rounded to float16: they differ by one unit in its last place."""
Inputs = dict[str, Artefact]


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> Inputs:
    return {"data": dataset, "teacher": teacher}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "states"


def request_of(inputs: Inputs, packing: int) -> states.Request:
    rows = training_rows(settings(), Dataset.open(inputs["data"])).pack(packing)
    model = load_model(inputs["teacher"])
    return states.Request(model, inputs["teacher"].digest, rows, (0, 2), CPU, True, True)


def settings(**other: object) -> DistillConfig:
    return DistillConfig.model_validate(FAST | {"losses": TERMS} | other)


def test_live_states_are_the_stored_ones(inputs: Inputs) -> None:
    request = request_of(inputs, 11)
    stored, running = states.compute(request), LiveStates.of(request, mean_square=True)
    assert stored.mean_square is not None and running.mean_square is not None
    assert np.allclose(stored.mean_square, running.mean_square, rtol=HALF_ULP)
    assert running.unit == stored.unit
    index = np.array([7, 0, 3])
    mask = torch.from_numpy(request.rows.targets[index] > 0)
    mask[0, 3] = mask[2, :5] = False
    for name in ("block_states", "user_vectors"):
        found, expected = getattr(running, name)(index, mask), getattr(stored, name)(index, mask)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert torch.allclose(found, expected, rtol=HALF_ULP, atol=1e-5)


def test_the_teacher_runs_once_a_batch(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(inputs, 12)
    running = LiveStates.of(request, mean_square=False)
    assert running.mean_square is None
    forward, calls = states.Request.forward, []

    def counted(self: states.Request, index: np.ndarray) -> object:
        calls.append(index)
        return forward(self, index)

    monkeypatch.setattr(states.Request, "forward", counted)
    first, second = np.array([1, 2]), np.array([1, 2])
    mask = torch.from_numpy(request.rows.targets[first] > 0)
    running.block_states(first, mask)
    running.user_vectors(first, mask)
    running.user_vectors(second, mask)
    assert len(calls) == 2 and calls[0] is first and calls[1] is second


def test_a_student_of_live_states_is_that_of_stored_ones(
    inputs: Inputs, tmp_path: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="slmc.distill"):
        running = distill(settings(max_cache="10kB"), inputs, tmp_path / "live")
    arrays = list(empty_cache.rglob("blocks.npy")) + list(empty_cache.rglob("queries.npy"))
    assert not arrays
    live_log = caplog.messages[0]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="slmc.distill"):
        stored = distill(settings(), inputs, tmp_path / "stored")
    arrays = list(empty_cache.rglob("blocks.npy")) + list(empty_cache.rglob("queries.npy"))
    assert len(arrays) == 4  # blocks and user vectors of two packings

    size = sum(np.load(file, mmap_mode="r").nbytes for file in arrays)
    assert states_bytes(settings(), inputs) == size
    assert caplog.messages[0] == (
        f"distill: the teacher's states take {size_text(size)} in {empty_cache}"
    )
    assert live_log == (
        f"distill: the teacher's states would take {size_text(size)}, more than max_cache "
        "(0.01 MB): the teacher runs at every step instead"
    )
    ends = [json.loads(a.file("metrics.json").read_text()) for a in (running, stored)]
    assert [e["steps"] for e in ends] == [ends[0]["steps"]] * 2
    for term in (*TERMS, "ce"):
        both = [one["epochs"][-1][term] for one in ends]
        assert both[0] == pytest.approx(both[1], rel=1e-3)
    weights = [load_model(a).state_dict() for a in (running, stored)]
    assert all(torch.allclose(weights[0][n], weights[1][n], atol=5e-3) for n in weights[0])


def test_stored_states_are_read_whatever_the_limit(
    inputs: Inputs, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = distill(settings(), inputs, tmp_path / "first")
    monkeypatch.setattr(live.LiveStates, "of", lambda *_, **__: pytest.fail("runs live"))
    again = distill(settings(max_cache=0), inputs, tmp_path / "second")
    files = [one.file("model.safetensors").read_bytes() for one in (stored, again)]
    assert files[0] == files[1]


def test_a_small_disk_is_no_error(
    inputs: Inputs,
    tmp_path: Path,
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        teachers.shutil, "disk_usage", lambda _: usage._replace(free=teachers.SPARE_BYTES + 1)
    )
    with caplog.at_level(logging.INFO, logger="slmc.distill"):
        distill(settings(epochs=1), inputs, tmp_path / "s")
    assert re.fullmatch(
        r"distill: the teacher's states would take [\d.]+ MB, too much for the disk "
        r"\(1\.0 GB free\): the teacher runs at every step instead",
        caplog.messages[0],
    )


@pytest.mark.parametrize(
    "other",
    [
        {"targets": "last"},
        {"losses": {"logits": 1.0}, "packings": 1},
        {"losses": {"cosine": 1.0}, "epochs": 1, "packings": 3},
        {"losses": {"supervise": 1.0}},
        {"losses": {}},
    ],
)
@pytest.mark.parametrize("second", [False, True], ids=["one teacher", "two teachers"])
def test_sizes_are_known_before_a_model_is_loaded(
    inputs: Inputs, sasrec: Artefact, other: dict[str, object], second: bool
) -> None:
    config = settings(**other)
    if second and "logits" not in config.losses.weights():
        pytest.skip("several teachers need losses.logits")
    roles = inputs | ({"teacher2": sasrec} if second else {})
    found = states_bytes(config, roles)
    data = Dataset.open(inputs["data"])
    loaded = teachers.load_teachers(config, roles, data)
    epochs = training_rows(config, data, packings=config.packings)
    expected = sum(one.size_bytes for one in requests_of(config, loaded, epochs))
    assert found == expected


def requests_of(
    config: DistillConfig, loaded: list[teachers.Teacher], epochs: Epochs
) -> list[states.Request]:
    """The requests of a run, which are not computed."""
    seen: list[states.Request] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "_fits", lambda *_: True)
        patch.setattr(states, "compute", seen.append)
        teachers.compute_signals(config, loaded, epochs, CPU)
    return seen


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("1.5 gb", 15 * 10**8),
        ("500MB", 5 * 10**8),
        ("12", 12),
        (0, 0),
        ("2TB", 2 * 10**12),
        ("3 kB", 3_000),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
    assert settings(max_cache=text).max_cache == text


@pytest.mark.parametrize("text", ["", "4 bananas", "-1GB", "GB", "nan", "4GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 4GB or 500MB"):
        settings(max_cache=text)
