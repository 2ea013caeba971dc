"""The quantize stage: weight-only quantization of linear layers and item table."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slmc.artefact import Artefact, Draft, draft
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize import layer_report, storage
from slmc.compress.quantize.assignment import assign
from slmc.compress.quantize.item_table import quantize_table
from slmc.compress.quantize.layer_report import Quantized
from slmc.compress.quantize.sensitivity import Trial, sensitivity
from slmc.compress.quantize.sequential import Finished, Method, quantize_layers
from slmc.compress.validation import change, check_users, measure, validation_config
from slmc.data.batches import pad_left
from slmc.data.calibration import histories
from slmc.data.dataset import Dataset
from slmc.errors import UsageError
from slmc.evaluation.evaluate import check_catalogue
from slmc.evaluation.results import protocol, protocol_text
from slmc.model import device, quantized
from slmc.model.loading import load_recommender
from slmc.model.recommender import SequentialRecommender
from slmc.model.saving import seal_model

BATCH = 16
"""Batch size, in calibration histories of similar length."""

log = logging.getLogger("slmc.quantize")


def quantize(config: QuantizeConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Quantize a recommender's weights to 4 or 8 bits.

    Raises:
        UsageError: The model is not a float recommender on an LLM, ranks another catalogue, or
            the settings do not fit its layers.
        UndecidedError: There is no calibration history, or no validation target for a ranking.
        BrokenRunError: A weight or a calibration activation is not finite.
        MissingError: A library of the extra ``quantize`` is not installed.
    """
    _check_installed(config)
    data = Dataset.open(inputs["data"])
    target = device.choose(config.device, "fp32").device
    model = recommender(inputs["model"], target)
    check_catalogue(model.config.num_items, data)
    bits = assign(config, model)
    if config.item_table is not None or config.sensitivity is not False:
        check_users(data, "the item table" if config.item_table else "sensitivity")
    batches = calibration_batches(data, config, target)
    with draft(out) as work:
        numbers: dict[str, Any] = {"method": config.method}
        if config.item_table is not None:
            numbers["item_table"] = _table(model, data, config)
        done = _layers(model, bits, batches, config, inputs, data, work)
        numbers |= summary(model, done, config)
        layer_report.write([one.report for one in done], work.path)
        return seal_model(
            work,
            model,
            stage="quantize",
            config=config,
            inputs=inputs,
            table_from=inputs["model"],
            numbers=numbers,
            device=target.type,
            note=_note(config, done),
            save=partial(_save, layers=done, group_size=config.group_size),
        )


def recommender(artefact: Artefact, where: torch.device) -> SequentialRecommender:
    """The float recommender of an artefact; raises ``UsageError`` if it is none."""
    if quantized.is_quantized(json.loads(artefact.file("config.json").read_text())):
        raise UsageError(
            f"{artefact.path} is quantized already.",
            "Name the model that it was made from: `slmc show` tells which.",
        )
    return load_recommender(artefact, where)


def calibration_batches(data: Dataset, config: QuantizeConfig, where: torch.device) -> list[Tensor]:
    """Return the calibration set in batches ``[B, L]`` int64 of similar length, padded left."""
    drawn = histories(data, count=config.calibration, seed=config.seed)
    drawn.sort(key=len)
    starts = range(0, len(drawn), BATCH)
    return [torch.from_numpy(pad_left(drawn[i : i + BATCH])).to(where) for i in starts]


def summary(
    model: PreTrainedModel, layers: list[Quantized], config: QuantizeConfig
) -> dict[str, Any]:
    """Return the entries of ``metrics.json`` about the quantized layers."""
    weights = sum(one.codes.numel() for one in layers)
    per_group = 32 + (0 if config.symmetric else 1) * config.bits
    stored = sum(
        one.codes.numel() * (one.grid.bits + per_group / config.group_size) for one in layers
    )
    return {
        "layers_quantized": len(layers),
        "weights_quantized": weights,
        "bits_per_weight": round(stored / weights, 3) if weights else None,
        "largest_error": max((one.report.error for one in layers), default=None),
    }


def _check_installed(config: QuantizeConfig) -> None:
    if config.method == "gptq":
        quantized.require("llmcompressor", otherwise=", or use --method rtn")
    quantized.require()


def _table(model: SequentialRecommender, data: Dataset, config: QuantizeConfig) -> dict[str, Any]:
    """Quantize only the item table, and evaluate the change of the ranking."""
    evaluation = validation_config(config, data)
    before = measure(model, data, evaluation, "float item table")
    quantize_table(model, str(config.item_table))
    after = measure(model, data, evaluation, f"{config.item_table} item table")
    return {
        "form": config.item_table,
        "protocol": protocol_text(protocol(evaluation)),
        "n": len(data.targets("valid").users),
        "float": before.means,
        "quantized": after.means,
        "change": change(after, before, config.seed),
    }


def _layers(
    model: SequentialRecommender,
    bits: dict[str, int],
    batches: list[Tensor],
    config: QuantizeConfig,
    inputs: dict[str, Artefact],
    data: Dataset,
    work: Draft,
) -> list[Quantized]:
    """Quantize the linear layers; with ``sensitivity``, also evaluate the ranking for each."""
    key = [config.model_dump(mode="json"), {role: a.digest for role, a in inputs.items()}]
    finished = Finished(work.resume, key)
    floats = {}
    if config.sensitivity is not False:
        floats = {n: model.get_parameter(f"{n}.weight").detach().clone() for n in bits}
    method = Method(
        name=config.method,
        group_size=config.group_size,
        symmetric=config.symmetric,
        act_order=config.act_order is not False,
    )
    done = quantize_layers(model, bits, batches, method, finished)
    if config.sensitivity is not False:
        trial = Trial(model, data, floats, done, config, finished.folder)
        sensitivity(trial, work.path)
    return done


def _save(
    model: PreTrainedModel,
    dataset: Artefact,
    out: Path,
    *,
    layers: list[Quantized],
    group_size: int,
) -> None:
    storage.save(model, layers, group_size, dataset, out)


def _note(config: QuantizeConfig, layers: list[Quantized]) -> str:
    widths = {one.grid.bits: 0 for one in layers}
    for one in layers:
        widths[one.grid.bits] += 1
    parts = [f"{count} linear layers in {bits} bits" for bits, count in sorted(widths.items())]
    parts += [f"the item table in {config.item_table}"] * bool(config.item_table)
    how = f" ({config.method}, groups of {config.group_size})" if layers else ""
    return f"Quantized{how}: {', '.join(parts)}."
