"""What quantizing did to each linear layer, measured on the calibration inputs.

Letters: ``N`` outputs, ``K`` inputs.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from slmc.compress.quantize.rtn import Grid

FILE = "layers.json"


@dataclass(frozen=True)
class Quantized:
    """A linear layer in codes."""

    name: str
    grid: Grid
    codes: Tensor
    """``[N, K]`` int8."""
    report: "LayerReport"


@dataclass(frozen=True)
class LayerReport:
    """How far the outputs of one linear layer are off, as a share of their mean square."""

    name: str
    bits: int
    symmetric: bool
    error: float
    """|(W - Q) X|^2 / |W X|^2 over the calibration inputs X of the layer."""
    rtn_error: float
    """The same for round-to-nearest on the same grid: what the method has to beat."""
    weight_error: float
    """|W - Q|^2 / |W|^2."""
    factorized: bool
    """False where GPTQ could not factorize the Hessian and rounded to nearest."""


def report(
    name: str, weight: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, *, factorized: bool
) -> LayerReport:
    """Measure a layer.

    Args:
        name: Its name.
        weight: ``[N, K]`` before.
        hessian: ``[K, K]``, the sum of x x^T over its inputs, up to a factor.
        grid: What it was rounded to.
        codes: ``[N, K]`` after.
        factorized: Whether GPTQ could work.
    """
    change, nearest = (weight - grid.weight(c) for c in (codes, grid.codes(weight)))
    energy = _energy(weight, hessian)
    return LayerReport(
        name=name,
        bits=grid.bits,
        symmetric=grid.symmetric,
        error=_share(_energy(change, hessian), energy),
        rtn_error=_share(_energy(nearest, hessian), energy),
        weight_error=_share(change.square().sum().item(), weight.square().sum().item()),
        factorized=factorized,
    )


def write(reports: Iterable[LayerReport], folder: Path) -> None:
    """Write ``layers.json``, the worst layer first."""
    ordered = sorted(reports, key=lambda one: (-one.error, one.name))
    text = json.dumps([asdict(one) for one in ordered], indent=2)
    (folder / FILE).write_text(text + "\n")


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """|W X|^2 = tr(W H W^T)."""
    return torch.einsum("nk,nk->", weight @ hessian, weight).item()


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
