"""Measure how a teacher ranks with fewer of its layers, and which layers change little.

Nothing is trained, unless ``train`` is set. Letters: ``L`` layers, ``S`` choices of layers, ``U``
users, ``d`` item width.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from slmc import processes
from slmc.artefact import Artefact, Draft, draft, load
from slmc.config import Protocol
from slmc.data.batches import pad_left
from slmc.data.calibration import histories
from slmc.data.dataset import Dataset, Targets
from slmc.distill import depth_curve, depth_plot
from slmc.distill.config import DistillConfig, Losses
from slmc.distill.depth_config import DepthConfig
from slmc.distill.depth_curve import TRAINED, Layers, Point
from slmc.distill.distill import distill
from slmc.errors import UndecidedError, UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import check_catalogue, rank
from slmc.evaluation.power import detectable_drop
from slmc.evaluation.results import protocol, protocol_text, resolve_auto, values
from slmc.evaluation.scorers import VectorScorer
from slmc.model import device, layers, subsets
from slmc.model.loading import load_recommender
from slmc.model.recommender import SequentialRecommender
from slmc.model.redundancy import Redundancy, redundancy

BATCH = 64
"""Histories that are computed at once."""
VECTOR_BYTES = 2**29
"""Largest memory of user vectors; more choices are computed in several groups."""
Choices = dict[str, list[Layers]]
"""Way -> the layers that it keeps at each depth."""

log = logging.getLogger("slmc.depth")


def depth(config: DepthConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Rank validation users with fewer layers of the teacher, and compare its layers.

    Returns:
        A report: ``metrics.json``, ``per_user.parquet`` and ``depth.svg``.

    Raises:
        UsageError: The model is a SASRec, ranks another catalogue, has one layer only, or fewer
            than ``depths`` says; or ``train`` is set and several processes run.
        UndecidedError: There is no validation target, or no training history.
        BrokenRunError: A score is not finite, or a student's training diverged.
    """
    if config.train and processes.count() > 1:
        raise UsageError(
            f"depth: train fits its students in one process, and there are {processes.count()}.",
            "Run `slmc depth` without a launcher first; later runs take its report from the cache.",
        )
    data = Dataset.open(inputs["data"])
    where = device.choose(config.device, "fp32").device
    teacher = load_recommender(inputs["teacher"], where)
    check_catalogue(teacher.config.num_items, data)
    depths = _depths(config, len(teacher.layers))
    users = data.targets("valid").sample(config.users, config.seed)
    if not users.users:
        raise UndecidedError(
            "depth: no user has a validation target, so no depth can be measured.",
            "Use a log with at least 3 interactions of some users, or another split.",
        )
    evaluation = _evaluation(config, data)
    with draft(out) as work:
        compared = _compare_layers(config, teacher, data)
        choices = chosen_layers(config, compared, len(teacher.layers), depths)
        tables = rank_choices(teacher, users, data, evaluation, choices)
        whole = tables[layers.first(len(teacher.layers))]
        ranked_by = protocol(evaluation)

        def against_teacher(kept: Layers, table: pl.DataFrame) -> Point:
            return depth_curve.point(
                config, kept, _parameters(teacher, kept), table, whole, ranked_by
            )

        curves = {
            way: [against_teacher(kept, tables[kept]) for kept in by_depth]
            for way, by_depth in choices.items()
        }
        columns = {f"{way} {len(k)}": tables[k] for way, each in choices.items() for k in each}
        if config.train:
            fitted = _fit_students(config, inputs, depths, users, data, evaluation, work)
            curves[TRAINED] = [against_teacher(kept, table) for kept, table in fitted.items()]
            columns |= {f"{TRAINED} {len(kept)}": table for kept, table in fitted.items()}
        numbers = _numbers(config, teacher, whole, evaluation, curves, compared)
        _write(work.path, numbers, {"teacher": whole, **columns}, evaluation)
        log.info("depth: %s", numbers["sentence"])
        return work.seal(
            kind="report",
            stage="depth",
            config=config,
            inputs=inputs,
            metrics={name: numbers[name] for name in SUMMARY},
            device=where.type,
        )


SUMMARY = ("metric", "n", "protocol", "teacher", "choice", "detectable", "sentence")
"""Numbers that the manifest repeats."""


def chosen_layers(
    config: DepthConfig, compared: Redundancy, count: int, depths: Sequence[int]
) -> Choices:
    """Return which of ``count`` layers each way keeps at each depth, the deepest first."""
    ways = {
        "first": layers.first,
        "influence": lambda keep: layers.by_influence(compared.influence, keep),
        "angular": lambda keep: layers.without_run(compared.angular, keep),
        "interval": lambda keep: layers.spaced(count, keep),
    }
    return {way: [ways[way](keep) for keep in depths] for way in dict.fromkeys(config.ways)}


def rank_choices(
    model: SequentialRecommender,
    users: Targets,
    data: Dataset,
    evaluation: EvaluateConfig,
    choices: Choices,
) -> dict[Layers, pl.DataFrame]:
    """Rank the users with every choice of layers, and with all layers; equal choices once.

    Args:
        model: In evaluation mode.
        users: U users, at least one.
        data: Their dataset.
        evaluation: Protocol, without ``exclude_seen: auto``.
        choices: The layers to keep.

    Returns:
        Layers -> table as :func:`slmc.evaluation.evaluate.rank` returns it, without top lists.
    """
    whole = layers.first(len(model.layers))
    # Sorted, so that choices that begin with the same layers are in one group.
    every = sorted({whole, *(kept for by_depth in choices.values() for kept in by_depth)})
    size = max(1, VECTOR_BYTES // (4 * len(users.users) * model.config.item_dim))
    items = model.item_vectors().detach()
    # The history of each user is replaced by the user's number, under which the vectors are found.
    numbered = replace(users, histories=list(np.arange(len(users.users), dtype=np.int32)[:, None]))
    tables = {}
    for start in range(0, len(every), size):
        group = every[start : start + size]
        for kept, vectors in zip(group, _vectors(model, users, group), strict=True):

            def of_users(numbers: Tensor, vectors: Tensor = vectors) -> Tensor:
                return vectors[numbers[:, 0].cpu()].to(items.device)

            scorer = VectorScorer(of_users, items)
            tables[kept] = rank(scorer, numbered, data.counts, evaluation, "depth ranking", top=0)
    return tables


def _vectors(model: SequentialRecommender, users: Targets, group: Sequence[Layers]) -> Tensor:
    """Return user vectors ``[S, U, d]`` on the CPU."""
    count = len(users.users)
    vectors = torch.empty(len(group), count, model.config.item_dim)
    order = np.argsort([rows.size for rows in users.histories], kind="stable")
    for start in range(0, count, BATCH):
        chosen = order[start : start + BATCH]
        ids = torch.from_numpy(pad_left([users.histories[user] for user in chosen]))
        vectors[:, chosen] = subsets.user_vectors(model, ids.to(model.device), group).cpu()
        progress = {"task": "depth", "done": start + len(chosen), "total": count, "unit": "users"}
        log.debug("progress", extra={"progress": progress})
    return vectors


def _depths(config: DepthConfig, count: int) -> list[int]:
    """Return the depths to measure, the deepest first."""
    if count == 1:
        raise UsageError(
            "depth: the model has one layer, so there is no smaller depth.",
            "Name a model with at least 2 layers.",
        )
    depths = range(1, count) if config.depths is None else sorted(set(config.depths))
    if depths[-1] >= count:
        raise UsageError(
            f"depths: {depths[-1]} is not less than the {count} layers of the model.",
            f"Set depths from 1 to {count - 1}; all {count} layers are always measured.",
        )
    return list(reversed(depths))


def _evaluation(config: DepthConfig, data: Dataset) -> EvaluateConfig:
    shared = {name: getattr(config, name) for name in ("seed", *Protocol.model_fields)}
    return resolve_auto(EvaluateConfig(**shared, split="valid", metrics=(config.metric,)), data)


def _compare_layers(
    config: DepthConfig, teacher: SequentialRecommender, data: Dataset
) -> Redundancy:
    sample = histories(data, count=config.histories, seed=config.seed)

    def watch(done: int) -> None:
        progress = {"task": "depth layers", "done": done, "total": len(sample)}
        log.debug("progress", extra={"progress": progress | {"unit": "histories"}})

    return redundancy(teacher, sample, watch=watch)


def _parameters(model: SequentialRecommender, kept: Layers) -> int:
    """Return the parameters of a model that has only the kept layers."""
    by_layer = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    whole = sum(p.numel() for p in model.parameters())
    return whole - sum(by_layer) + sum(by_layer[i] for i in kept)


def _fit_students(
    config: DepthConfig,
    inputs: dict[str, Artefact],
    depths: Sequence[int],
    users: Targets,
    data: Dataset,
    evaluation: EvaluateConfig,
    work: Draft,
) -> dict[Layers, pl.DataFrame]:
    """Train a student of each depth with cross-entropy, and rank the users with it.

    Finished students stay in the folder of the resume until the report is sealed.
    """
    where = device.choose(config.device, config.dtype).device
    tables = {}
    for number, keep in enumerate(depths, start=1):
        log.info("depth: student %d of %d, %d layers", number, len(depths), keep)
        folder = work.resume / f"student-{keep}"
        student = (
            load(folder)
            if folder.exists()
            else distill(_student_config(config, inputs["teacher"], keep), inputs, folder)
        )
        scorer = VectorScorer.of(load_recommender(student, where))
        tables[layers.first(keep)] = rank(
            scorer, users, data.counts, evaluation, f"depth student {keep}", top=0
        )
    return tables


def _student_config(config: DepthConfig, teacher: Artefact, keep: int) -> DistillConfig:
    has_prompt = teacher.manifest.config.get("prompt") is not None
    shared = ("seed", "device", "dtype", *Protocol.model_fields)
    return DistillConfig(
        layers=keep,
        blocks=1,
        losses=Losses(),
        targets="last" if has_prompt else "all",
        validation_users=config.users,
        **config.fit.model_dump(),
        **{name: getattr(config, name) for name in shared},
    )


def _numbers(
    config: DepthConfig,
    teacher: SequentialRecommender,
    whole: pl.DataFrame,
    evaluation: EvaluateConfig,
    curves: Mapping[str, Sequence[Point]],
    compared: Redundancy,
) -> dict[str, Any]:
    ranked_by = protocol(evaluation)
    of_teacher = values(whole, config.metric, ranked_by)
    choice = depth_curve.best(curves)
    numbers = {
        "metric": config.metric,
        "max_drop": config.max_drop,
        "confidence": config.confidence,
        "protocol": ranked_by,
        "n": whole.height,
        "teacher": {
            "layers": len(teacher.layers),
            "parameters": sum(p.numel() for p in teacher.parameters()),
            "value": float(of_teacher.mean()),
        },
        "ways": depth_curve.as_numbers(curves),
        "choice": None if choice is None else choice.as_dict(),
        "nearest": None if (near := depth_curve.nearest(curves)) is None else near.as_dict(),
        "detectable": _finite(detectable_drop(of_teacher, confidence=config.confidence)),
        "redundancy": asdict(compared) | {"seed": config.seed},
    }
    return numbers | {"sentence": sentence(numbers)}


def sentence(numbers: Mapping[str, Any]) -> str:
    """Return the result of a report as one line."""
    basis = (
        f"(n = {numbers['n']:,}, {protocol_text(numbers['protocol'])}, one-sided "
        f"{100 * numbers['confidence']:g} % bounds)"
    )
    count, metric = numbers["teacher"]["layers"], numbers["metric"]
    chosen = numbers["choice"] or numbers["nearest"]
    change = chosen["relative"] or chosen["change"]
    low, mean, high = (
        f"{100 * change[k]:+.2f}" if chosen["relative"] else f"{change[k]:+.4f}"
        for k in ("low", "change", "high")
    )
    percent = " %" if chosen["relative"] else ""
    compared = (
        f"{metric} {chosen['value']:.4f} against {numbers['teacher']['value']:.4f}, change "
        f"{mean}{percent} [{low}, {high}]"
    )
    which = f"{chosen['depth']} of {count} layers ({chosen['way']})"
    if numbers["choice"] is None:
        return (
            f"no depth below {count} layers is within {numbers['max_drop']} of {metric}; the "
            f"nearest is {which}: {compared} {basis}"
        )
    return f"{which}, within {numbers['max_drop']}: {compared} {basis}"


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _write(
    folder: Path,
    numbers: Mapping[str, Any],
    tables: Mapping[str, pl.DataFrame],
    evaluation: EvaluateConfig,
) -> None:
    """Write the numbers, the metric of each user in every choice, and the plot."""
    text = json.dumps(numbers, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n")
    whole, (metric,) = tables["teacher"], evaluation.metrics
    ranked_by = protocol(evaluation)
    by_choice = [
        pl.Series(name, values(table, metric, ranked_by)) for name, table in tables.items()
    ]
    whole.select("user", "target").with_columns(*by_choice).write_parquet(
        folder / "per_user.parquet"
    )
    (folder / "depth.svg").write_text(depth_plot.picture(numbers), encoding="utf-8")
