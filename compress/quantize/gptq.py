"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) with llm-compressor: the extra ``slmc[quantize]``.

Weights are rounded column by column, and the following columns compensate the error on the
calibration activations. The solver of llm-compressor is called for each layer, not through its
``oneshot``, so that a killed run can continue, nothing is traced and no file is written.
Letters: ``N`` outputs, ``K`` inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slmc.compress.quantize.rtn import Grid
from slmc.model import quantized

DAMPENING = 0.01
"""Share of its mean diagonal that is added to the diagonal of the Hessian."""


def gptq(weight: Tensor, hessian: Tensor, grid: Grid, *, act_order: bool) -> tuple[Tensor, bool]:
    """Quantize a weight so that the layer's outputs on the calibration activations stay close.

    Args:
        weight: ``[N, K]`` float32.
        hessian: ``[K, K]`` float32, the sum of x x^T over inputs x, up to a factor.
        grid: Scales and zero points, fixed beforehand.
        act_order: Whether columns are rounded by descending diagonal of the Hessian; groups keep
            the stored order.

    Returns:
        Codes ``[N, K]`` int8, and whether the Hessian could be factorized; if not, the codes are
        rounded to nearest.

    Raises:
        MissingError: llm-compressor is not installed.
    """
    quantized.require("llmcompressor", otherwise=", or use --method rtn")
    with quantized.quiet(), _one_thread():
        from compressed_tensors.quantization import QuantizationArgs
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

        rounded, _, failed = quantize_weight(
            weights=weight[None].clone(),
            hessians=hessian[None].clone(),
            scale=grid.scale[None],
            zero_point=grid.zero_point[None],
            global_scale=None,
            quant_args=QuantizationArgs(
                num_bits=grid.bits,
                symmetric=grid.symmetric,
                strategy="group",
                group_size=weight.shape[1] // grid.scale.shape[1],
                actorder="static" if act_order else None,
            ),
            percdamp=DAMPENING,
        )
    return grid.codes(rounded[0]), not bool(failed[0])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, which is faster for the many tiny operations of the solver.

    On two busy cores a 576 x 576 weight took 0.1 s with one thread and 2.6 s with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
