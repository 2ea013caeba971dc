"""Which layers the ranking depends on: one quantized at a time, measured on validation.

With a budget it also proposes a mixed assignment: the fewest layers, those that cost the most
NDCG (without a cutoff) first, that are kept wider for the loss of NDCG@10 to stay within the
budget. The mean is held against the budget, not its bound: few validation sets could tell a
percent.
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
from slmc.compress.layers import Quantized
from slmc.compress.quantize.rtn import Grid
from slmc.compress.validation import METRICS, Ranking, alike, change, measure
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
    """A model whose layers can each be float or quantized, and its ranking for such mixes."""

    model: SequentialRecommender
    data: Dataset
    floats: Mapping[str, Tensor]
    """Name -> weight of each quantized layer before it was rounded."""
    layers: Sequence[Quantized]
    config: QuantizeConfig
    folder: Path
    """Where finished measurements are kept for a resume."""
    total: int = 0
    done: int = 0

    def rank(self, mix: Mapping[str, int | str]) -> Ranking:
        """The ranking with layers at the given widths, ``skip`` for float; all the others float."""
        key = hashlib.sha256(canonical(dict(mix))).hexdigest()[:16]
        file = self.folder / f"{key}.npy"
        if file.is_file():
            found = Ranking(dict(zip(METRICS, np.load(file, allow_pickle=False), strict=True)))
        else:
            self._set(mix)
            found = measure(self.model, self.data, alike(self.config, self.data), "validation")
            staged = file.with_suffix(".partial.npy")
            np.save(staged, np.stack([found.of[name] for name in METRICS]))
            staged.replace(file)
        self.done += 1
        progress = {"task": "sensitivity", "done": self.done, "total": self.total, "unit": "mixes"}
        log.debug("progress", extra={"progress": progress})
        return found

    def restore(self) -> None:
        """Put every layer back to its own codes."""
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
    """Measure each layer, write ``sensitivity.json`` and, given a budget, a recipe fragment.

    Args:
        trial: The model; left with every layer quantized.
        out: Folder of the artefact.

    Returns:
        What ``sensitivity.json`` says.
    """
    config, names = trial.config, [layer.name for layer in trial.layers]
    asked: dict[str, int | str] = {layer.name: layer.grid.bits for layer in trial.layers}
    budget = config.sensitivity if not isinstance(config.sensitivity, bool) else None
    steps = len(names).bit_length() + 1 if budget is not None else 0
    trial.total = len(names) + 2 + steps
    before = trial.rank({})
    rows = []
    for name in names:
        after = trial.rank({name: asked[name]})
        rows.append({"name": name, "bits": asked[name], **change(after, before, config.seed)})
    rows.sort(key=lambda row: (row[ORDERED_BY]["change"], row["name"]))
    whole = trial.rank(asked)
    ranked_by = protocol_text(protocol(alike(config, trial.data)))
    said: dict[str, Any] = {
        "protocol": f"{ranked_by}; one layer quantized at a time",
        "n": before.of[BUDGETED].size,
        "float": before.means,
        "all_quantized": {**whole.means, "change": change(whole, before, config.seed)},
        "layers": rows,
    }
    if budget is not None:
        said["proposal"] = _propose(trial, before, asked, [str(row["name"]) for row in rows])
        _report(said, config, out)
    trial.restore()
    (out / FILE).write_text(json.dumps(said, indent=2) + "\n")
    return said


def _propose(
    trial: Trial, before: Ranking, asked: Mapping[str, int | str], order: Sequence[str]
) -> dict[str, Any] | None:
    """The mix with the fewest wider layers that is within the budget, by bisection."""
    budget, relative = parse_budget(str(trial.config.sensitivity))

    def mixed(count: int) -> dict[str, int | str]:
        wider = set(order[:count])
        return {n: _wider(width) if n in wider else width for n, width in asked.items()}

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
        "assign": {name: _wider(asked[name]) for name in order[:high]},
        **after.means,
        "change": change(after, before, trial.config.seed),
    }


def _wider(width: int | str) -> int | str:
    return 8 if width == 4 else "skip"


def _report(said: Mapping[str, Any], config: QuantizeConfig, out: Path) -> None:
    proposal = said["proposal"]
    if proposal is None:
        log.warning(
            "sensitivity: no assignment keeps the loss of NDCG@10 within %s on validation",
            config.sensitivity,
        )
        return
    (out / FRAGMENT).write_text(_fragment(said, config))
    log.info(
        "sensitivity: %d of %d layers wider keep NDCG@10 within %s on validation: see %s",
        len(proposal["assign"]),
        len(said["layers"]),
        config.sensitivity,
        FRAGMENT,
    )


def _fragment(said: Mapping[str, Any], config: QuantizeConfig) -> str:
    """The proposal as a step of a recipe."""
    proposal = said["proposal"]
    before, after = said["float"][BUDGETED], proposal[BUDGETED]
    bounds = proposal["change"][BUDGETED]
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("sensitivity", "device", "seed", *Protocol.model_fields):
        settings.pop(name, None)
    settings |= {"method": config.method, "bits": config.bits, "group_size": config.group_size}
    settings["assign"] = {**config.assign, **proposal["assign"]}
    lines = [
        f"# {len(proposal['assign'])} of {len(said['layers'])} layers wider, for a budget of "
        f"{config.sensitivity} on NDCG@10.",
        f"# Validation, n = {said['n']}: {before:.4f} -> {after:.4f}, "
        f"change {bounds['change']:+.4f} [{bounds['low']:+.4f}, {bounds['high']:+.4f}].",
        "# The layers are rounded anew when it runs: let a gate judge the result on test.",
        "- quantize:",
    ]
    # JSON is YAML too, and quotes what needs it.
    lines += [f"    {name}: {json.dumps(value)}" for name, value in sorted(settings.items())]
    return "\n".join(lines) + "\n"
