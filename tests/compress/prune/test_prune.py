"""The prune stage: kept units, reported numbers, recovery by distillation."""

from pathlib import Path

import pytest
import torch
from prunable import HALF, KINDS, Inputs, build, numbers_of, shape_of
from sealing import seal_model
from transformers import AutoModel

from slmc.artefact import Artefact, load
from slmc.commands.cli import call
from slmc.compress.config import PruneConfig
from slmc.compress.prune.prune import best, prune, summary
from slmc.config import Sampled
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import rank
from slmc.evaluation.scorers import VectorScorer
from slmc.model.loading import load_model


def valid_ce(artefact: Artefact, dataset: Artefact) -> float:
    data, config = Dataset.open(dataset), EvaluateConfig(split="valid")
    scorer = VectorScorer.of(load_model(artefact))
    return float(rank(scorer, data.targets("valid"), data.counts, config)["ce"].to_numpy().mean())


@pytest.mark.parametrize("method", ["magnitude", "activation", "taylor"])
def test_width(method: str, inputs: Inputs, tmp_path: Path) -> None:
    pruned = prune(
        PruneConfig.model_validate(HALF | {"importance": method}), inputs, tmp_path / "p"
    )
    assert shape_of(pruned) == (3, 2, 1, 32)
    numbers = numbers_of(pruned)
    assert numbers["before"] | {"parameters": 0} == {
        "layers": 3,
        "kv_groups": 2,
        "heads": 4,
        "channels": 64,
        "parameters": 0,
    }
    assert numbers["after"]["parameters"] == pruned.manifest.metrics["parameters"]
    assert numbers["kept_layers"] == [0, 1, 2] and "block_influence" not in numbers
    full, small = load_model(inputs["model"]), AutoModel.from_pretrained(pruned.path)
    for layer in numbers["layers"]:
        number, channels = layer["layer"], layer["channels"]["kept"]
        (group,) = layer["kv_groups"]["kept"]
        for part in (layer["kv_groups"], layer["channels"]):
            assert part["least_kept"] >= part["most_removed"]
            assert 0.5 <= part["importance_kept"] < 1
        before, after = full.layers[number], small.layers[number]
        gate, o_proj = "mlp.gate_proj.weight", "self_attn.o_proj.weight"
        assert torch.equal(after.get_parameter(gate), before.get_parameter(gate)[channels])
        columns = before.get_parameter(o_proj)[:, 16 * group : 16 * group + 16]
        assert torch.equal(after.get_parameter(o_proj), columns)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["magnitude", "activation", "taylor", "influence", "search"])
def test_every_method_on_every_decoder(
    by: str, kind: str, kv_heads: int, dataset: Artefact, tmp_path: Path
) -> None:
    given = seal_model(build(kind, kv_heads=kv_heads), dataset, tmp_path / "given")
    depth = {"layers": 1, "depth_by": by, "calibration": 8}
    settings = depth if by in ("influence", "search") else HALF | {"importance": by}
    inputs = {"data": dataset, "model": given}
    pruned = prune(PruneConfig.model_validate(settings), inputs, tmp_path / "made")
    after = (1, 4, kv_heads, 48) if "layers" in settings else (2, 2, kv_heads // 2, 24)
    assert shape_of(pruned) == after
    assert load(pruned.path).manifest.metrics["layers"] == after[0]


def test_depth_and_width_are_reported(inputs: Inputs, tmp_path: Path) -> None:
    how = {"ranking": Sampled(sampled=9), "exclude_seen": True, "seed": 3}
    config = PruneConfig(layers=2, depth_by="search", ffn=0.25, round_to=1, calibration=40, **how)
    pruned = prune(config, inputs, tmp_path / "p")
    numbers = numbers_of(pruned)
    assert shape_of(pruned) == (2, 4, 2, 16)
    assert len(numbers["block_influence"]) == 3
    (removed,) = numbers["search"]
    assert numbers["protocol"] == {
        "ranking": {"sampled": 9},
        "exclude_seen": True,
        "split": "valid",
        "seed": 3,
    }
    assert sorted([*numbers["kept_layers"], removed["removed"]]) == [0, 1, 2]
    assert [one["layer"] for one in numbers["layers"]] == numbers["kept_layers"]
    assert all(set(one) == {"layer", "channels"} for one in numbers["layers"])
    assert pruned.manifest.versions.keys() >= {"torch", "torch-pruning"}
    card = pruned.file("README.md").read_text()
    assert "2 of 3 layers, 4 of 4 attention heads and 16 of 64 MLP channels" in card


def test_influence_keeps_the_layers_with_the_highest_influence(
    inputs: Inputs, tmp_path: Path
) -> None:
    pruned = prune(PruneConfig(layers=1, calibration=40), inputs, tmp_path / "p")
    numbers = numbers_of(pruned)
    influence = numbers["block_influence"]
    assert numbers["kept_layers"] == [influence.index(max(influence))]
    full, small = load_model(inputs["model"]).state_dict(), load_model(pruned).state_dict()
    (stays,) = numbers["kept_layers"]
    for name, tensor in small.items():
        assert torch.equal(tensor, full[name.replace("layers.0.", f"layers.{stays}.")])


def test_the_same_call_gives_the_same_artefact(inputs: Inputs, tmp_path: Path) -> None:
    config = PruneConfig.model_validate(HALF | {"layers": 2})
    pruned = [prune(config, inputs, tmp_path / name) for name in ("a", "b")]
    assert pruned[0].digest == pruned[1].digest


@pytest.mark.parametrize("rate", [1e-12, 3e-3])
def test_recovery_is_a_student_that_starts_from_it(
    rate: float, inputs: Inputs, dataset: Artefact, teacher: Artefact, tmp_path: Path
) -> None:
    pruned = prune(PruneConfig.model_validate(HALF | {"layers": 2}), inputs, tmp_path / "p")
    settings = {"blocks": 2, "epochs": 2, "rows": 8, "warmup": 2, "dtype": "fp32"}
    rates = {"lr": rate, "projection_lr": rate, "weight_decay": 0}
    config = DistillConfig.model_validate(settings | rates | {"losses": {"logits": 1.0}})
    chain = {"data": dataset, "teacher": teacher, "student": pruned}
    recovered = distill(config, chain, tmp_path / "r")
    assert shape_of(recovered) == shape_of(pruned) == (2, 2, 1, 32)
    if rate == 1e-12:
        before, after = load_model(pruned).state_dict(), load_model(recovered).state_dict()
        assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)
    else:
        assert valid_ce(recovered, dataset) < valid_ce(pruned, dataset) - 0.01


def test_as_a_command(
    student: Artefact,
    dataset: Artefact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, options = tmp_path / "p", ["--heads", "0.5", "--ffn", "0.5", "--round-to", "8"]
    code = call(["prune", str(student.path), "--data", str(dataset.path), "-o", str(out), *options])
    assert code == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert shape_of(load(out)) == (2, 2, 1, 32)
    assert call(["prune", str(student.path), "--data", str(dataset.path)]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "set at least one of layers, exit_block, heads and ffn" in errors


def test_best_and_summary() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 0.5], dtype=torch.float64)
    assert best(scores, 1) == (1,) and best(scores, 3) == (0, 1, 2)
    assert summary(scores, (1, 2)) == {
        "kept": [1, 2],
        "importance_kept": 0.8,
        "least_kept": 3.0,
        "most_removed": 1.0,
    }
    assert summary(torch.zeros(2), (0, 1))["importance_kept"] == 1.0
