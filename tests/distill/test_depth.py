"""The metric by depth: as evaluate measures it, the smallest depth within a budget, refusals."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import polars as pl
import pytest
import torch
from sealing import seal_model

from slmc.artefact import Artefact, load
from slmc.data.dataset import Dataset
from slmc.distill import depth as module
from slmc.distill import depth_curve
from slmc.distill.depth import chosen_layers, depth, rank_choices
from slmc.distill.depth_config import DepthConfig
from slmc.distill.depth_curve import Point
from slmc.errors import UndecidedError, UsageError
from slmc.evaluation.bootstrap import Bounds, paired_bootstrap
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import evaluate, rank
from slmc.evaluation.results import protocol, resolve_auto, values
from slmc.evaluation.scorers import VectorScorer
from slmc.model import random_models
from slmc.model.layers import first, with_layers
from slmc.model.loading import load_recommender
from slmc.model.redundancy import Redundancy

Inputs = dict[str, Artefact]
QUICK = {"histories": 30, "max_drop": "100%", "dtype": "fp32"}


@pytest.fixture(scope="module")
def inputs(dataset: Artefact, teacher: Artefact) -> Inputs:
    return {"data": dataset, "teacher": teacher}


@pytest.fixture(scope="module")
def report(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    config = settings(ways=("first", "influence", "angular", "interval"), max_drop="5%")
    return depth(config, inputs, tmp_path_factory.mktemp("depth") / "depth")


@pytest.fixture(scope="module")
def idle_teacher(dataset: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A model of 4 layers whose layers 1 and 2 return their input."""
    torch.manual_seed(0)
    model = random_models.recommender(
        "llama", {"layers": 4, "hidden": 32}, num_items=30, item_dim=16, history=10
    )
    with torch.no_grad():
        model.get_parameter("item_embeddings.weight")[1:].normal_()
        model.output_proj.weight.normal_()
        for number in (1, 2):
            model.layers[number].get_parameter("self_attn.o_proj.weight").zero_()
            model.layers[number].get_parameter("mlp.down_proj.weight").zero_()
        for number in (0, 3):
            for parameter in model.layers[number].parameters():
                parameter.mul_(4)
    return seal_model(model, dataset, tmp_path_factory.mktemp("idle") / "model")


def settings(**other: Any) -> DepthConfig:
    return DepthConfig.model_validate(QUICK | other)


def numbers_of(artefact: Artefact) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads(artefact.file("metrics.json").read_text())
    return numbers


def test_every_depth_of_every_way_is_measured(report: Artefact) -> None:
    numbers = numbers_of(report)
    assert set(numbers["ways"]) == {"first", "influence", "angular", "interval"}
    for way in numbers["ways"].values():
        assert [one["depth"] for one in way["depths"]] == [2, 1]
        assert all(len(one["layers"]) == one["depth"] for one in way["depths"])
    assert [one["layers"] for one in numbers["ways"]["first"]["depths"]] == [[0, 1], [0]]
    assert [one["layers"] for one in numbers["ways"]["interval"]["depths"]] == [[0, 2], [0]]
    compared = numbers["redundancy"]
    assert len(compared["influence"]) == 3 and np.shape(compared["cka"]) == (4, 4)
    assert (compared["histories"], compared["last_tokens"], compared["seed"]) == (30, 30, 17)


def test_all_layers_rank_as_evaluate_says(report: Artefact, inputs: Inputs, tmp_path: Path) -> None:
    config = EvaluateConfig(split="valid", metrics=("ndcg@10",))
    whole = {"data": inputs["data"], "model": inputs["teacher"]}
    summary = evaluate(config, whole, tmp_path / "e").manifest.metrics
    numbers = numbers_of(report)
    assert numbers["teacher"]["value"] == summary["metrics"]["ndcg@10"]["value"]
    assert (numbers["n"], numbers["protocol"]) == (summary["n"], summary["protocol"])


def test_a_choice_ranks_as_the_model_of_these_layers(report: Artefact, inputs: Inputs) -> None:
    model, data = load_recommender(inputs["teacher"]), Dataset.open(inputs["data"])
    config = resolve_auto(EvaluateConfig(split="valid", metrics=("ndcg@10",)), data)
    point = numbers_of(report)["ways"]["first"]["depths"][0]
    small = with_layers(model, point["layers"]).eval()
    users, ranked_by = data.targets("valid"), protocol(config)
    metric = [
        values(rank(VectorScorer.of(m), users, data.counts, config), "ndcg@10", ranked_by)
        for m in (small, model)
    ]
    interval = paired_bootstrap(metric[0], metric[1], seed=17, confidence=0.95)
    assert point["value"] == pytest.approx(metric[0].mean(), abs=1e-6)
    for key, bounds in (("change", interval.absolute), ("relative", interval.relative)):
        assert bounds is not None
        assert point[key] == pytest.approx(vars(bounds), abs=1e-3)
    assert point["parameters"] == sum(p.numel() for p in small.parameters())
    stored = pl.read_parquet(report.file("per_user.parquet"))
    assert stored["user"].to_list() == users.users
    assert stored["first 2"].to_numpy() == pytest.approx(metric[0], abs=1e-6)
    assert stored["teacher"].to_numpy() == pytest.approx(metric[1], abs=1e-6)


def test_layers_that_do_nothing_are_dropped_first(
    dataset: Artefact, idle_teacher: Artefact, tmp_path: Path
) -> None:
    made = depth(settings(), {"data": dataset, "teacher": idle_teacher}, tmp_path / "d")
    numbers = numbers_of(made)
    for way in ("influence", "angular"):
        by_depth = {one["depth"]: one for one in numbers["ways"][way]["depths"]}
        assert by_depth[2]["layers"] == [0, 3]
        assert by_depth[2]["value"] == pytest.approx(numbers["teacher"]["value"], abs=1e-6)
        assert by_depth[2]["change"] == {"change": 0.0, "low": 0.0, "high": 0.0}
    assert numbers["ways"]["influence"]["depths"][0]["layers"] in ([0, 1, 3], [0, 2, 3])
    assert max(numbers["redundancy"]["influence"][1:3]) < 1e-12
    assert numbers["redundancy"]["cka"][1][3] == pytest.approx(1)


def test_a_budget_that_only_equal_rankings_keep(
    dataset: Artefact, idle_teacher: Artefact, tmp_path: Path
) -> None:
    config = settings(max_drop="0%", ways=("influence", "first"))
    made = depth(config, {"data": dataset, "teacher": idle_teacher}, tmp_path / "d")
    numbers = numbers_of(made)
    assert (numbers["choice"]["way"], numbers["choice"]["layers"]) == ("influence", [0, 3])
    assert numbers["ways"]["first"]["smallest"] is None
    assert load(made.path).manifest.metrics["choice"] == numbers["choice"]
    assert numbers["sentence"].startswith("2 of 4 layers (influence), within 0%: ndcg@10 ")


def test_no_depth_within_the_budget(
    dataset: Artefact, idle_teacher: Artefact, tmp_path: Path
) -> None:
    config = settings(max_drop="0%", ways=("first",))
    numbers = numbers_of(depth(config, {"data": dataset, "teacher": idle_teacher}, tmp_path / "d"))
    assert numbers["choice"] is None and numbers["nearest"]["way"] == "first"
    assert numbers["sentence"].startswith(
        "no depth below 4 layers is within 0% of ndcg@10; the nearest is "
    )


def test_users_are_sampled_and_negatives_drawn_as_the_protocol_says(
    inputs: Inputs, tmp_path: Path
) -> None:
    config = settings(users=20, ranking={"sampled": 5}, exclude_seen=False, metric="hr@2", seed=3)
    numbers = numbers_of(depth(config, inputs, tmp_path / "d"))
    assert numbers["n"] == 20
    assert numbers["protocol"]["ranking"] == {"sampled": 5} and numbers["protocol"]["seed"] == 3
    full = numbers_of(depth(settings(users=20, metric="hr@2", seed=3), inputs, tmp_path / "f"))
    assert numbers["teacher"]["value"] > full["teacher"]["value"]


def test_a_rise_of_cross_entropy_is_a_loss(
    dataset: Artefact, teacher: Artefact, tmp_path: Path
) -> None:
    config = settings(metric="ce", max_drop=0.01, depths=(1,), ways=("first",))
    numbers = numbers_of(depth(config, {"data": dataset, "teacher": teacher}, tmp_path / "d"))
    (point,) = numbers["ways"]["first"]["depths"]
    rise = point["value"] - numbers["teacher"]["value"]
    assert point["change"]["change"] == pytest.approx(-rise) and point["relative"] is None
    assert point["within"] == (point["change"]["low"] >= -0.01)


def test_short_students_are_fitted_once(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(config: Any, *others: Any) -> Artefact:
        calls.append(config.layers)
        if calls == [2, 1]:
            raise KeyboardInterrupt
        return whole(config, *others)

    whole = module.distill
    monkeypatch.setattr(module, "distill", counted)
    config = settings(train=True, ways=("first",), fit={"lr": 3e-3, "init": "teacher"})
    with pytest.raises(KeyboardInterrupt):
        depth(config, inputs, tmp_path / "d")
    made = depth(config, inputs, tmp_path / "d")  # the student of 2 layers was kept
    assert calls == [2, 1, 1]
    numbers = numbers_of(made)
    trained = numbers["ways"]["trained"]["depths"]
    assert [one["layers"] for one in trained] == [[0, 1], [0]]
    assert all(set(one) == set(numbers["ways"]["first"]["depths"][0]) for one in trained)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert not any(name.startswith("student") for name in made.manifest.files)


def test_fewer_vectors_at_once_change_nothing(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = load_recommender(inputs["teacher"]), Dataset.open(inputs["data"])
    users = data.targets("valid").sample(30, 1)
    config = resolve_auto(EvaluateConfig(split="valid"), data)
    choices = {"some": [(0,), (0, 1), (2,), (0, 2)]}
    whole = rank_choices(model, users, data, config, choices)
    monkeypatch.setattr(module, "VECTOR_BYTES", 4 * 30 * 16 * 2)
    monkeypatch.setattr(module, "BATCH", 7)
    parts = rank_choices(model, users, data, config, choices)
    assert whole.keys() == parts.keys() == {first(3), *choices["some"]}
    for kept, table in whole.items():
        assert parts[kept]["rank"].to_list() == pytest.approx(table["rank"].to_list())
        assert parts[kept]["user"].to_list() == users.users


def test_two_runs_give_the_same_report(inputs: Inputs, report: Artefact, tmp_path: Path) -> None:
    again = depth(DepthConfig.model_validate(report.manifest.config), inputs, tmp_path / "d")
    assert again.digest == report.digest


def test_progress_counts_histories_and_users(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="slmc.depth"):
        depth(settings(), inputs, tmp_path / "d")
    steps = [r.__dict__["progress"] for r in caplog.records if "progress" in r.__dict__]
    assert {step["unit"] for step in steps} == {"histories", "users"}
    assert steps[-1]["done"] == steps[-1]["total"]


def test_the_plot_is_an_svg_whose_marks_lie_inside(report: Artefact) -> None:
    tree = minidom.parse(str(report.file("depth.svg")))
    width, height = map(float, tree.documentElement.getAttribute("viewBox").split()[2:])
    circles = tree.getElementsByTagName("circle")
    assert len(circles) == 4 * 2
    for circle in circles:
        assert 0 <= float(circle.getAttribute("cx")) <= width
        assert 0 <= float(circle.getAttribute("cy")) <= height
    titles = [node.firstChild.data for node in tree.getElementsByTagName("title")]
    assert len(titles) == 4 * 4 and titles[0] == "0, 0: 1.000"
    assert len([r for r in tree.getElementsByTagName("rect") if r.getAttribute("class")]) == 3


def curve(*points: tuple[int, float, bool]) -> list[Point]:
    """Points of depth, change and whether they are within the budget."""
    bounds = [Bounds(change, change - 0.1, change + 0.1) for _, change, _ in points]
    return [
        Point(d, first(d), 1, 0.5, at, at, within)
        for (d, _, within), at in zip(points, bounds, strict=True)
    ]


def test_the_smallest_depth_wins_then_the_smallest_loss() -> None:
    curves = {
        "first": curve((3, 0.0, True), (2, -0.2, True), (1, -0.5, False)),
        "influence": curve((3, 0.0, True), (2, -0.1, True)),
        "angular": curve((3, 0.1, True)),
        "trained": curve((2, 0.9, False)),
    }
    best = depth_curve.best(curves)
    assert best is not None and (best.way, best.point.depth) == ("influence", 2)
    numbers = depth_curve.as_numbers(curves)
    assert [numbers[way]["smallest"] and numbers[way]["smallest"]["depth"] for way in curves] == [
        2, 2, 3, None,
    ]  # fmt: skip
    near = depth_curve.nearest({"first": curve((3, -0.4, False), (2, -0.2, False))})
    assert near is not None and near.point.depth == 2
    assert depth_curve.best({"first": curve((2, -0.2, False))}) is None


def test_equal_ways_are_measured_once() -> None:
    compared = Redundancy([0.3, 0.2, 0.1], [[0.0] * 4] * 4, [], 1, 1, 1)
    config = settings(ways=("influence", "influence", "first"))
    assert chosen_layers(config, compared, 3, [2, 1]) == {
        "influence": [(0, 1), (0,)],
        "first": [(0, 1), (0,)],
    }


def test_sasrec_is_refused(dataset: Artefact, sasrec: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        depth(settings(), {"data": dataset, "teacher": sasrec}, tmp_path / "d")
    assert "is a Sasrec, not a recommender on an LLM." in caught.value.what


def test_depths_that_are_not_below_the_model(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        depth(settings(depths=(3, 1)), inputs, tmp_path / "d")
    assert str(caught.value) == "depths: 3 is not less than the 3 layers of the model."
    assert caught.value.remedy == "Set depths from 1 to 2; all 3 layers are always measured."
    assert not list(tmp_path.iterdir())


def test_a_model_of_one_layer(dataset: Artefact, tmp_path: Path) -> None:
    model = random_models.recommender(
        "llama", {"layers": 1, "hidden": 32}, num_items=30, item_dim=16, history=10
    )
    one = seal_model(model, dataset, tmp_path / "one")
    with pytest.raises(UsageError) as caught:
        depth(settings(), {"data": dataset, "teacher": one}, tmp_path / "d")
    assert str(caught.value) == "depth: the model has one layer, so there is no smaller depth."


def test_no_validation_user(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Dataset.open(inputs["data"]).targets("valid")
    none = replace(targets, users=[], histories=[], targets=targets.targets[:0], seen=[])
    monkeypatch.setattr(Dataset, "targets", lambda *_: none)
    with pytest.raises(UndecidedError) as caught:
        depth(settings(), inputs, tmp_path / "d")
    assert caught.value.what.startswith("depth: no user has a validation target")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metric": "ndgc@10"}, "there is no metric 'ndgc@10'"),
        ({"metric": "ce_calibrated"}, "ce_calibrated is fitted on these users"),
        ({"metric": "ce", "max_drop": "1%"}, "give a budget in nats, such as 0.02"),
        ({"max_drop": "mrr=1%", "metric": "ndcg@10"}, "max_drop is of mrr, but metric is ndcg@10"),
        ({"max_drop": "mrr=one"}, "'one' is neither a number nor a percentage"),
        ({"ways": ()}, "ways is empty: name at least one"),
        ({"ways": ("last",)}, "Input should be 'first', 'influence', 'angular' or 'interval'"),
        ({"depths": ()}, "depths is empty: name at least one"),
        ({"depths": (0,)}, "greater than or equal to 1"),
    ],
)
def test_invalid_settings_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**config)


def test_the_budget_can_name_its_metric() -> None:
    config = settings(max_drop="hr@5=2%")
    assert (config.metric, config.max_drop) == ("hr@5", "2%")
    assert settings(max_drop="mrr = 0.01", metric="mrr").max_drop == " 0.01"
