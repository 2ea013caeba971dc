"""Quantize a decoder layer by layer, each on the activations of the already quantized model.

The linear layers of a decoder layer are quantized on its input activations. These then pass
through the quantized layer and become the inputs of the next, so that later layers compensate
earlier errors. Finished layers are stored: a killed run continues after the last one, with the
same bits.
Letters: ``T`` tokens of a packed batch, ``K`` inputs of a linear layer.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slmc.artefact import canonical
from slmc.compress.quantize.gptq import gptq
from slmc.compress.quantize.layer_report import LayerReport, Quantized, report
from slmc.compress.quantize.rtn import Grid
from slmc.errors import BrokenRunError
from slmc.model.recommender import SequentialRecommender

Keywords = Mapping[str, Any]
Run = Callable[[], Tensor]
"""Computes a part of the model on a batch, so that hooks see the inputs of its layers."""

log = logging.getLogger("slmc.quantize")


@dataclass(frozen=True)
class Method:
    """How layers are quantized."""

    name: str
    """``gptq`` or ``rtn``."""
    group_size: int
    symmetric: bool
    act_order: bool


class Finished:
    """The quantized parts of the model on disk, one file per part."""

    def __init__(self, folder: Path, key: object) -> None:
        """Store files under ``folder``; files of runs with another ``key`` are ignored."""
        digest = hashlib.sha256(canonical(key)).hexdigest()[:16]
        self.folder = folder / f"layers-{digest}"
        self.folder.mkdir(exist_ok=True)

    def load(self, part: str, device: torch.device) -> list[Quantized] | None:
        """Return the layers of a part, or None if it is not finished."""
        file = self.folder / f"{part}.safetensors"
        if not file.is_file():
            return None
        with safe_open(file, framework="pt", device=str(device)) as stored:
            reports = json.loads(stored.metadata()["layers"])
            return [_layer(stored.get_tensor, LayerReport(**fields)) for fields in reports]

    def save(self, part: str, layers: Sequence[Quantized]) -> None:
        """Write a part atomically."""
        tensors = {}
        for layer in layers:
            tensors[f"{layer.name}.codes"] = layer.codes
            tensors[f"{layer.name}.scale"] = layer.grid.scale
            tensors[f"{layer.name}.zero_point"] = layer.grid.zero_point
        reports = json.dumps([asdict(layer.report) for layer in layers])
        staged = self.folder / f"{part}.partial"
        save_file(tensors, staged, metadata={"layers": reports})
        os.replace(staged, self.folder / f"{part}.safetensors")


def _layer(tensor: Callable[[str], Tensor], report: LayerReport) -> Quantized:
    codes, scale, zero = (tensor(f"{report.name}.{x}") for x in ("codes", "scale", "zero_point"))
    return Quantized(report.name, Grid(report.bits, report.symmetric, scale, zero), codes, report)


@torch.no_grad()
def quantize_layers(
    model: SequentialRecommender,
    bits: Mapping[str, int],
    batches: Sequence[Tensor],
    method: Method,
    finished: Finished,
) -> list[Quantized]:
    """Quantize linear layers of a model; their weights are replaced by the dequantized values.

    Args:
        model: In evaluation mode, on the device to compute on.
        bits: Name -> bits of each layer to quantize.
        batches: Calibration histories ``[B, L]`` int64, padded with 0 on the left.
        method: How to quantize.
        finished: Storage of finished parts.

    Returns:
        The layers, in the model's order of computation.

    Raises:
        BrokenRunError: A weight or a calibration activation is not finite.
        MissingError: The method is GPTQ, and llm-compressor is not installed.
    """
    parts = _parts(model, bits)
    whole = [partial(model.user_vectors, ids) for ids in batches]
    done: list[Quantized] = []
    inputs: list[tuple[Tensor, list[Keywords]]] | None = None
    for number, (part, names) in enumerate(parts.items()):
        layer = int(part.removeprefix("layer-")) if part.startswith("layer-") else None
        if layer is None:
            runs: Sequence[Run] = whole
        else:
            inputs = inputs or [_layer_inputs(model, ids) for ids in batches]
            runs = [_through(model.layers[layer], x, kwargs[layer]) for x, kwargs in inputs]
        quantized = finished.load(part, batches[0].device)
        if quantized is None:
            quantized = _round(model, {n: bits[n] for n in names}, runs, method) if names else []
            finished.save(part, quantized)
        for one in quantized:
            model.get_parameter(f"{one.name}.weight").copy_(one.grid.weight(one.codes))
        done += quantized
        if layer is not None and inputs is not None and layer + 1 < len(model.layers):
            inputs = [(run(), kwargs) for run, (_, kwargs) in zip(runs, inputs, strict=True)]
        progress = {"task": "quantize", "done": number + 1, "total": len(parts), "unit": "parts"}
        log.debug("progress", extra={"progress": progress})
    return done


def _parts(model: SequentialRecommender, bits: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the parts to quantize together, in order: input_proj, each decoder layer, the rest."""
    first = ["input_proj"] if "input_proj" in bits else []
    parts = {"before": first} if first else {}
    placed = set(first)
    for index in range(len(model.layers)):
        prefix = f"backbone.layers.{index}."
        names = [name for name in bits if name.startswith(prefix)]
        parts[f"layer-{index}"] = names
        placed.update(names)
    rest = [name for name in bits if name not in placed]
    return parts | ({"after": rest} if rest else {})


def _layer_inputs(model: SequentialRecommender, ids: Tensor) -> tuple[Tensor, list[Keywords]]:
    """Return the input ``[1, T, H]`` of the first decoder layer, and each layer's keywords."""
    states: list[Tensor] = []
    keywords: list[Keywords] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        states.append(args[0] if args else rest.pop("hidden_states"))
        keywords.append(rest)

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.layers]
    try:
        model.user_vectors(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return states[0], keywords


def _through(layer: nn.Module, states: Tensor, keywords: Keywords) -> Run:
    def run() -> Tensor:
        out = layer(states, **keywords)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    return run


def _round(
    model: nn.Module,
    bits: Mapping[str, int],
    runs: Sequence[Run],
    method: Method,
) -> list[Quantized]:
    """Quantize the layers ``bits``, whose input activations are observed while ``runs`` compute."""
    modules: dict[str, nn.Linear] = {n: model.get_submodule(n) for n in bits}  # type: ignore[misc]
    for name, module in modules.items():
        if not bool(torch.isfinite(module.weight).all()):
            raise BrokenRunError(
                f"quantize: a weight of {name} is not a finite number.",
                "Check how the model was trained: training diverged, or its file is damaged.",
            )
    with _hessians(modules) as hessians:
        for run in runs:
            run()
    return [
        _rounded(name, module, hessians[name], bits[name], method)
        for name, module in modules.items()
    ]


def _rounded(name: str, module: nn.Linear, hessian: Tensor, bits: int, method: Method) -> Quantized:
    if not bool(torch.isfinite(hessian).all()):
        raise BrokenRunError(
            f"quantize: a calibration activation of {name} is not a finite number.",
            "Check how the model was trained: some of its weights are not finite or far too large.",
        )
    weight = module.weight.detach()
    grid = Grid.of(weight, bits=bits, group_size=method.group_size, symmetric=method.symmetric)
    codes, factorized = grid.codes(weight), True
    if method.name == "gptq":
        codes, factorized = gptq(weight, hessian, grid, act_order=method.act_order)
    if not factorized:
        log.warning(
            "quantize: %s: GPTQ cannot factorize its Hessian, so it is rounded to nearest", name
        )
    errors = report(name, weight, hessian, grid, codes, factorized=factorized)
    return Quantized(name, grid, codes, errors)


@contextmanager
def _hessians(modules: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Sum x x^T over the observed input activations x of each layer, ``[K, K]``."""
    sums = {
        name: torch.zeros(m.in_features, m.in_features, device=m.weight.device)
        for name, m in modules.items()
    }

    def add(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2)
            sums[name].addmm_(x.T, x)

        return hook

    hooks = [module.register_forward_pre_hook(add(name)) for name, module in modules.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
