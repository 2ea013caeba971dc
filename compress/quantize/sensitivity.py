"""Sensitivity of the ranking to each layer: one is quantized at a time, and validated.

With a budget, it also proposes a mixed assignment: layers get more bits, those with the largest
loss of NDCG (without a cutoff) first, until the loss of NDCG@10 is within the budget. The budget
is compared with the mean, not its confidence bound: few validation sets can detect one percent.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slmc.artefact import canonical
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.layer_report import Quantized
from slmc.compress.quantize.rtn import Grid
from slmc.compress.validation import METRICS, Ranking, change, measure, validation_config
from slmc.config import Protocol, parse_budget
from slmc.data.dataset import Dataset
from slmc.evaluation.results import protocol, protocol_text
from slmc.model.recommender import SequentialRecommender

BUDGETED, ORDERED_BY = "ndcg@10", "ndcg"
FILE = "sensitivity.json"
FRAGMENT = "quantize.fragment.yaml"

log = logging.getLogger("slmc.quantize")


@dataclass
class Trial:
    """A model whose layers can each be float or quantized; ranks the validation users for a mix."""

    model: SequentialRecommender
    data: Dataset
    floats: Mapping[str, Tensor]
    """Name -> float weight of each quantized layer."""
    layers: Sequence[Quantized]
    config: QuantizeConfig
    folder: Path
    """Folder of finished rankings, for a resume."""
    total: int = 0
    done: int = 0

    def rank(self, mix: Mapping[str, int | str]) -> Ranking:
        """Return the ranking for bits per layer; ``skip`` or no entry means float."""
        key = hashlib.sha256(canonical(dict(mix))).hexdigest()[:16]
        file = self.folder / f"{key}.npy"
        if file.is_file():
            ranking = Ranking(dict(zip(METRICS, np.load(file, allow_pickle=False), strict=True)))
        else:
            self._set(mix)
            ranking = measure(
                self.model, self.data, validation_config(self.config, self.data), "validation"
            )
            staged = file.with_suffix(".partial.npy")
            np.save(staged, np.stack([ranking.values[name] for name in METRICS]))
            staged.replace(file)
        self.done += 1
        progress = {"task": "sensitivity", "done": self.done, "total": self.total, "unit": "mixes"}
        log.debug("progress", extra={"progress": progress})
        return ranking

    def restore(self) -> None:
        """Restore the quantized weights of every layer."""
        self._set({layer.name: layer.grid.bits for layer in self.layers})

    @torch.no_grad()
    def _set(self, mix: Mapping[str, int | str]) -> None:
        for layer in self.layers:
            weight = self._weight(layer, mix.get(layer.name, "skip"))
            self.model.get_parameter(f"{layer.name}.weight").copy_(weight)

    def _weight(self, layer: Quantized, width: int | str) -> Tensor:
        if width == layer.grid.bits:
            return layer.grid.weight(layer.codes)
        weight = self.floats[layer.name]
        if width == "skip":
            return weight
        grid = Grid.of(
            weight,
            bits=int(width),
            group_size=self.config.group_size,
            symmetric=self.config.symmetric,
        )
        return grid.weight(grid.codes(weight))


def sensitivity(trial: Trial, out: Path) -> dict[str, Any]:
    """Rank with each layer quantized; writes ``sensitivity.json`` and, with a budget, a fragment.

    Args:
        trial: The model; all its layers are quantized afterwards.
        out: Folder of the artefact.

    Returns:
        The content of ``sensitivity.json``.
    """
    config, names = trial.config, [layer.name for layer in trial.layers]
    bits: dict[str, int | str] = {layer.name: layer.grid.bits for layer in trial.layers}
    budget = config.sensitivity if not isinstance(config.sensitivity, bool) else None
    bisections = len(names).bit_length() + 1 if budget is not None else 0
    trial.total = len(names) + 2 + bisections
    before = trial.rank({})
    rows = []
    for name in names:
        after = trial.rank({name: bits[name]})
        rows.append({"name": name, "bits": bits[name], **change(after, before, config.seed)})
    rows.sort(key=lambda row: (row[ORDERED_BY]["change"], row["name"]))
    whole = trial.rank(bits)
    ranked_by = protocol_text(protocol(validation_config(config, trial.data)))
    report: dict[str, Any] = {
        "protocol": f"{ranked_by}; one layer quantized at a time",
        "n": before.values[BUDGETED].size,
        "float": before.means,
        "all_quantized": {**whole.means, "change": change(whole, before, config.seed)},
        "layers": rows,
    }
    if budget is not None:
        report["proposal"] = _propose(trial, before, bits, [str(row["name"]) for row in rows])
        _write_proposal(report, config, out)
    trial.restore()
    (out / FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _propose(
    trial: Trial, before: Ranking, bits: Mapping[str, int | str], order: Sequence[str]
) -> dict[str, Any] | None:
    """Return the mix within the budget that gives the fewest layers more bits, by bisection."""
    budget, relative = parse_budget(str(trial.config.sensitivity))

    def mixed(count: int) -> dict[str, int | str]:
        wider = set(order[:count])
        return {n: _wider(width) if n in wider else width for n, width in bits.items()}

    def within(count: int) -> bool:
        mean = before.means[BUDGETED]
        return mean - trial.rank(mixed(count)).means[BUDGETED] <= budget * (mean if relative else 1)

    low, high = 0, len(order)
    if not within(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle + 1, high)
    after = trial.rank(mixed(high))
    trial.total = trial.done
    return {
        "assign": {name: _wider(bits[name]) for name in order[:high]},
        **after.means,
        "change": change(after, before, trial.config.seed),
    }


def _wider(width: int | str) -> int | str:
    return 8 if width == 4 else "skip"


def _write_proposal(report: Mapping[str, Any], config: QuantizeConfig, out: Path) -> None:
    proposal = report["proposal"]
    if proposal is None:
        log.warning(
            "sensitivity: no assignment keeps the loss of NDCG@10 within %s on validation",
            config.sensitivity,
        )
        return
    (out / FRAGMENT).write_text(_fragment(report, config))
    log.info(
        "sensitivity: %d of %d layers with more bits keep the loss of NDCG@10 within %s on "
        "validation: see %s",
        len(proposal["assign"]),
        len(report["layers"]),
        config.sensitivity,
        FRAGMENT,
    )


def _fragment(report: Mapping[str, Any], config: QuantizeConfig) -> str:
    """Return the proposal as a recipe step."""
    proposal = report["proposal"]
    before, after = report["float"][BUDGETED], proposal[BUDGETED]
    bounds = proposal["change"][BUDGETED]
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("sensitivity", "device", "seed", *Protocol.model_fields):
        settings.pop(name, None)
    settings |= {"method": config.method, "bits": config.bits, "group_size": config.group_size}
    settings["assign"] = {**config.assign, **proposal["assign"]}
    lines = [
        f"# {len(proposal['assign'])} of {len(report['layers'])} layers wider, for a budget of "
        f"{config.sensitivity} on NDCG@10.",
        f"# Validation, n = {report['n']}: {before:.4f} -> {after:.4f}, "
        f"change {bounds['change']:+.4f} [{bounds['low']:+.4f}, {bounds['high']:+.4f}].",
        "# The layers are rounded anew when it runs: let a gate judge the result on test.",
        "- quantize:",
    ]
    # JSON is valid YAML, and quotes where needed.
    lines += [f"    {name}: {json.dumps(value)}" for name, value in sorted(settings.items())]
    return "\n".join(lines) + "\n"
