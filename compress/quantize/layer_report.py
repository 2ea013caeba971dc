"""The quantization error of each linear layer, on its calibration activations.

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
    """A quantized linear layer."""

    name: str
    grid: Grid
    codes: Tensor
    """``[N, K]`` int8."""
    report: "LayerReport"


@dataclass(frozen=True)
class LayerReport:
    """Errors of one quantized linear layer, relative to the mean square of its outputs."""

    name: str
    bits: int
    symmetric: bool
    error: float
    """|(W - Q) X|^2 / |W X|^2 over the calibration activations X that enter the layer."""
    rtn_error: float
    """The same for round-to-nearest on the same grid: the baseline of the method."""
    weight_error: float
    """|W - Q|^2 / |W|^2."""
    factorized: bool
    """False if GPTQ could not factorize the Hessian and rounded to nearest."""


def report(
    name: str, weight: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, *, factorized: bool
) -> LayerReport:
    """Compute the errors of a layer.

    Args:
        name: Name of the layer.
        weight: ``[N, K]`` before quantization.
        hessian: ``[K, K]``, the sum of x x^T over its inputs x, up to a factor.
        grid: Scales and zero points.
        codes: ``[N, K]`` quantized weights.
        factorized: Whether GPTQ could factorize the Hessian.
    """
    error, rtn_error = (weight - grid.weight(c) for c in (codes, grid.codes(weight)))
    energy = _energy(weight, hessian)
    return LayerReport(
        name=name,
        bits=grid.bits,
        symmetric=grid.symmetric,
        error=_share(_energy(error, hessian), energy),
        rtn_error=_share(_energy(rtn_error, hessian), energy),
        weight_error=_share(error.square().sum().item(), weight.square().sum().item()),
        factorized=factorized,
    )


def write(reports: Iterable[LayerReport], folder: Path) -> None:
    """Write ``layers.json``, largest error first."""
    ordered = sorted(reports, key=lambda one: (-one.error, one.name))
    text = json.dumps([asdict(one) for one in ordered], indent=2)
    (folder / FILE).write_text(text + "\n")


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """Return |W X|^2 = tr(W H W^T)."""
    return torch.einsum("nk,nk->", weight @ hessian, weight).item()


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
