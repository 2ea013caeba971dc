"""Early exits: a block's own head as the output of an ordinary, shallower recommender."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from prunable import KINDS, build, shape_of, some_ids
from safetensors.torch import load_file
from sealing import seal_model
from torch import Tensor
from transformers import AutoModel

from slmc.artefact import Artefact
from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.compress.prune.exits import early_exit
from slmc.compress.prune.prune import prune
from slmc.compress.quantize.quantize import quantize
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.errors import UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import evaluate
from slmc.export.config import ExportConfig
from slmc.export.evaluation import evaluate_engine
from slmc.export.export import export
from slmc.export.runtime.engine import Engine
from slmc.model import exit_heads
from slmc.model.exit_heads import ExitHeads
from slmc.model.loading import load_model, load_recommender
from slmc.model.recommender import SequentialRecommender

FAST = {"layers": 3, "blocks": 2, "epochs": 2, "rows": 8, "warmup": 2, "dtype": "fp32"}
WIDTH = 8
HISTORIES = torch.tensor([[0, 0, 3], [1, 2, 3], [30, 1, 7]])


@pytest.fixture(scope="module")
def student(
    dataset: Artefact, teacher: Artefact, tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    """Three layers in two blocks, of layer 1 and of layers 2 and 3, and a narrow item table."""
    terms = {"supervise": 1.0, "logits": 1.0, "items": 1.0}
    config = DistillConfig.model_validate(
        FAST | {"losses": terms, "keep_heads": True, "item_dim": WIDTH}
    )
    inputs = {"data": dataset, "teacher": teacher}
    return distill(config, inputs, tmp_path_factory.mktemp("exits") / "student")


def of_the_head(model: SequentialRecommender, end: int, head: Tensor, ids: Tensor) -> Tensor:
    """Scores ``[B, V]``: the head of the state after layer ``end``, times the item vectors."""
    with torch.no_grad(), model.block_states((end,)) as states:
        model.user_vectors(ids)
        last = (ids != 0).sum(dim=1).cumsum(dim=0) - 1
        return (states[0][last] @ head.T @ model.item_vectors().T)[:, 1:]


@pytest.fixture(scope="module")
def short(
    dataset: Artefact, student: Artefact, tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    inputs = {"data": dataset, "model": student}
    config = PruneConfig(exit_block=1, calibration=8)
    return prune(config, inputs, tmp_path_factory.mktemp("short") / "short")


def test_heads_are_kept_beside_the_student(student: Artefact) -> None:
    heads = load_file(student.file(exit_heads.FILE))
    assert {name: tuple(head.shape) for name, head in heads.items()} == {
        "layer.0.weight": (WIDTH, 32)
    }
    serving = sum(
        student.file(name).stat().st_size
        for name in ("config.json", "model.safetensors", "items.parquet", "preprocessor.json")
    )
    assert student.manifest.metrics["size_mb"] == serving / 1e6
    assert not [name for name in load_file(student.file("model.safetensors")) if "head" in name]


def test_scores_are_those_of_the_head(student: Artefact, short: Artefact) -> None:
    assert shape_of(short)[0] == 1
    head = ExitHeads.open(student).weights[0]
    expected = of_the_head(load_recommender(student), 0, head, HISTORIES)
    model = AutoModel.from_pretrained(short.path).eval()
    with torch.no_grad():
        assert torch.allclose(model(HISTORIES)[:, 1:], expected, atol=1e-5)
        padded = model.padded_user_vectors(HISTORIES) @ model.item_vectors()[1:].T
        assert torch.allclose(padded, expected, atol=1e-5)
    assert json.loads(short.file("config.json").read_text())["final_norm"] is False
    assert "final_norm" not in json.loads(student.file("config.json").read_text())
    assert exit_heads.FILE not in short.manifest.files
    numbers = json.loads(short.file("metrics.json").read_text())
    assert numbers["kept_layers"] == [0] and numbers["before"]["layers"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", pytest.param("padded", marks=pytest.mark.slow)])
def test_it_exports_and_evaluates(
    layout: str, dataset: Artefact, short: Artefact, tmp_path: Path
) -> None:
    """A narrow item table and no final norm, through both graphs and their parity check."""
    config = ExportConfig.model_validate({"top_k": 10, "layout": layout})
    engine = export(config, {"data": dataset, "model": short}, tmp_path / "engine")
    with torch.no_grad():
        expected = load_model(short)(HISTORIES)[:, 1:]
    histories = [ids[ids != 0].numpy() for ids in HISTORIES]
    scores = torch.from_numpy(Engine.open(engine, scores=True).scores(histories))
    assert torch.allclose(scores, expected, atol=1e-4)
    reports = [
        evaluate_engine(EvaluateConfig(), {"data": dataset, "engine": engine}, tmp_path / "e"),
        evaluate(EvaluateConfig(), {"data": dataset, "model": short}, tmp_path / "m"),
    ]
    ranks = [pl.read_parquet(one.file("per_user.parquet"))["rank"] for one in reports]
    assert ranks[0].equals(ranks[1]) and ranks[0].len() == 80


def test_it_can_be_quantized_with_its_table(
    dataset: Artefact, short: Artefact, tmp_path: Path
) -> None:
    config = QuantizeConfig.model_validate(
        {"method": "rtn", "bits": 8, "group_size": 16, "item_table": "int8", "calibration": 8}
    )
    made = quantize(config, {"data": dataset, "model": short}, tmp_path / "q")
    with torch.no_grad():
        before, after = (load_model(one)(HISTORIES)[:, 1:] for one in (short, made))
    assert load_model(made).item_vectors().shape == (31, WIDTH)
    assert (before - after).abs().max() < 0.05 * before.abs().max()


def test_width_and_recovery_go_on_from_it(
    dataset: Artefact, teacher: Artefact, student: Artefact, tmp_path: Path
) -> None:
    config = PruneConfig(exit_block=1, ffn=0.5, round_to=8, calibration=8)
    pruned = prune(config, {"data": dataset, "model": student}, tmp_path / "p")
    assert shape_of(pruned) == (1, 4, 2, 32)
    again = DistillConfig.model_validate(
        FAST | {"blocks": 1, "epochs": 1, "losses": {"logits": 1.0}}
    )
    inputs = {"data": dataset, "teacher": teacher, "student": pruned}
    recovered = distill(again, inputs, tmp_path / "r")
    assert json.loads(recovered.file("config.json").read_text())["final_norm"] is False
    assert load_model(recovered).config.num_items == 30


@pytest.mark.parametrize("kind", [*KINDS, "phi", "olmo2"])
def test_every_decoder_ends_before_its_final_norm(
    kind: str, dataset: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``early_exit`` compares the result with the head by itself."""
    model = build(kind, layers=3, prefix_length=2, suffix_length=1)
    source = seal_model(model, dataset, tmp_path / "m")
    heads = ExitHeads((0, 1), (torch.randn(16, 32), torch.randn(16, 32)))
    monkeypatch.setattr(ExitHeads, "open", lambda _: heads)
    ended = early_exit(model, source, 2, some_ids())
    assert len(ended.layers) == 2 and len(model.layers) == 3
    assert all(parameter.requires_grad for parameter in ended.backbone.layers.parameters())


def test_heads_that_are_not_there_are_refused(
    dataset: Artefact, teacher: Artefact, student: Artefact, tmp_path: Path
) -> None:
    for model, block, what in (
        (teacher, 1, f"exit_block: {teacher.path} has no heads of its blocks."),
        (student, 2, "exit_block: 2 is more than the 1 blocks that have a head."),
    ):
        config = PruneConfig(exit_block=block, calibration=8)
        with pytest.raises(UsageError) as caught:
            prune(config, {"data": dataset, "model": model}, tmp_path / "p")
        assert caught.value.what == what
        assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_block": 1, "layers": 2}, "exit_block decides which layers are kept"),
        ({}, "set at least one of layers, exit_block, heads and ffn"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig.model_validate(settings)


def test_heads_need_their_term() -> None:
    with pytest.raises(ValueError, match=r"keep_heads needs losses\.supervise"):
        DistillConfig.model_validate({"keep_heads": True, "losses": {"logits": 1}})
