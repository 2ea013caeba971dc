"""Grids, GPTQ and the loop over layers, each against a plain reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from quantizable import RTN, batches, build, nothing_finished

from slmc.compress.quantize.gptq import DAMPENING, gptq
from slmc.compress.quantize.layer_report import Quantized
from slmc.compress.quantize.rtn import Grid
from slmc.compress.quantize.sequential import Method, quantize_layers
from slmc.errors import BrokenRunError

Floats = NDArray[np.float64]

KINDS = [(kind, kv) for kind in ("llama", "qwen3", "gemma2") for kv in (4, 2)]
SAME_CODES = 0.98
"""Share of equal codes: float32 and float64 may round a tie differently, and the following columns
then compensate another error."""
SAME_ERROR = 0.02
"""Relative difference of the errors that such flips may cause."""

TIE = 1e-4
"""Distance from a tie, in scales, within which float32 may round either way."""


def correlated(rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -1.5, width)
    return torch.randn(rows, width, generator=generator) @ mixing


def random_weight(outputs: int = 24, inputs: int = 64) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(4))


def plain_grid(weight: Floats, bits: int, size: int, symmetric: bool) -> tuple[Floats, Floats]:
    """Return the scale and zero point of each weight, ``[N, K]`` each, by loops."""
    scale, zero = np.zeros_like(weight), np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            group = weight[row, start : start + size]
            low, high = min(group.min(), 0), max(group.max(), 0)
            levels = 2**bits - 1
            s = max(-low, high) / (levels / 2) if symmetric else (high - low) / levels
            z = 0.0 if symmetric else np.round(-(2 ** (bits - 1)) - low / s)
            scale[row, start : start + size], zero[row, start : start + size] = s, z
    return scale, zero


def plain_codes(weight: Floats, scale: Floats, zero: Floats, bits: int) -> Floats:
    top = 2 ** (bits - 1)
    return np.clip(np.round(weight / scale + zero), -top, top - 1)


def textbook(
    weight: Floats, hessian: Floats, scale: Floats, zero: Floats, bits: int, act_order: bool
) -> Floats:
    """Algorithm 1 of the paper with blocks of one column: codes, in float64."""
    width = weight.shape[1]
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(width)
    left, h = weight[:, order].copy(), hessian[np.ix_(order, order)].copy()
    h += np.eye(width) * DAMPENING * np.diag(h).mean()
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.zeros_like(left)
    for i, column in enumerate(order):
        s, z = scale[:, column], zero[:, column]
        codes[:, i] = plain_codes(left[:, i], s, z, bits)
        error = (left[:, i] - (codes[:, i] - z) * s) / inverse[i, i]
        left[:, i:] -= np.outer(error, inverse[i, i:])
    stored = np.zeros_like(codes)
    stored[:, order] = codes
    return stored


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rtn_equals_plain_numpy(bits: int, symmetric: bool) -> None:
    weight = random_weight() + 0.3
    grid = Grid.of(weight, bits=bits, group_size=16, symmetric=symmetric)
    scale, zero = plain_grid(weight.double().numpy(), bits, 16, symmetric)
    codes, w = grid.codes(weight), weight.double().numpy()
    # The most negative weight of a group is a tie in a symmetric grid.
    clear = np.abs((w / scale + zero) % 1 - 0.5) > TIE
    assert (codes.numpy() == plain_codes(w, scale, zero, bits))[clear].all()
    assert clear.mean() > 0.9
    np.testing.assert_allclose(
        grid.weight(codes).double().numpy(), (codes.numpy() - zero) * scale, rtol=1e-6
    )


def test_known_codes() -> None:
    grid = Grid.of(torch.tensor([[7.5, -3.0, 0.0, 0.0]]), bits=4, group_size=2, symmetric=True)
    codes = grid.codes(torch.tensor([[7.5, -3.0, 0.0, 0.0]]))
    assert grid.scale.tolist() == [[1.0, torch.finfo(torch.float32).eps]]
    assert codes.tolist() == [[7, -3, 0, 0]]  # 7.5 is half a scale above the last code


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_equals_the_textbook(bits: int, symmetric: bool, act_order: bool) -> None:
    pytest.importorskip("llmcompressor", reason="the extra slmc[quantize] is not installed")
    weight, x = random_weight(), correlated(300, 64)
    hessian = x.T @ x
    grid = Grid.of(weight, bits=bits, group_size=16, symmetric=symmetric)
    codes, factorized = gptq(weight, hessian, grid, act_order=act_order)
    w, h = weight.double().numpy(), hessian.double().numpy()
    scale, zero = plain_grid(w, bits, 16, symmetric)
    reference = textbook(w, h, scale, zero, bits, act_order)

    def error(codes: Floats) -> float:
        change = w - (codes - zero) * scale
        return float(np.einsum("nk,kl,nl->", change, h, change))

    assert factorized
    assert (codes.numpy() == reference).mean() > SAME_CODES
    assert error(codes.numpy().astype(float)) == pytest.approx(error(reference), rel=SAME_ERROR)
    assert error(reference) < 0.6 * error(plain_codes(w, scale, zero, bits))


@pytest.mark.parametrize(("kind", "kv_heads"), KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_beats_rtn_in_every_layer(
    kind: str, kv_heads: int, symmetric: bool, tmp_path: Path
) -> None:
    pytest.importorskip("llmcompressor", reason="the extra slmc[quantize] is not installed")
    model = build(kind, kv_heads)
    method = Method("gptq", group_size=16, symmetric=symmetric, act_order=True)
    done = quantize_layers(model, all_in(model, 4), batches(), method, nothing_finished(tmp_path))
    assert len(done) == 14
    for one in done:
        assert 0 < one.report.error < one.report.rtn_error, one.name


@pytest.mark.parametrize(("kind", "kv_heads"), KINDS)
def test_each_layer_is_quantized_on_activations_of_the_quantized_model(
    kind: str, kv_heads: int, tmp_path: Path
) -> None:
    model = build(kind, kv_heads)
    bits = all_in(model, 4) | {"input_proj": 4, "output_proj": 8}
    done = quantize_layers(model, bits, batches(), RTN, nothing_finished(tmp_path))
    assert [one.name for one in done][:1] == ["input_proj"]
    assert [one.name for one in done][-1:] == ["output_proj"]
    reference = build(kind, kv_heads)
    by_name = {one.name: one for one in done}
    for part in parts_of(done):
        errors = errors_of(reference, part, by_name)
        for name, error in errors.items():
            assert by_name[name].report.error == pytest.approx(error, rel=1e-3), name
        with torch.no_grad():
            for name in part:
                one = by_name[name]
                reference.get_parameter(f"{name}.weight").copy_(one.grid.weight(one.codes))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name)), name


def all_in(model: torch.nn.Module, bits: int) -> dict[str, int]:
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {n: bits for n, _ in model.named_modules() if n in linears and ".layers." in n}


def parts_of(done: list[Quantized]) -> list[list[str]]:
    parts: dict[str, list[str]] = {}
    for one in done:
        words = one.name.split(".")
        parts.setdefault(".".join(words[:3]) if "layers" in words else one.name, []).append(
            one.name
        )
    return list(parts.values())


def errors_of(model: Any, names: list[str], quantized: dict[str, Quantized]) -> dict[str, float]:
    """Relative error of the outputs, from whole forward passes and the inputs themselves."""
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].flatten(0, -2))
        )
        for name in names
    ]
    with torch.no_grad():
        for ids in batches():
            model(ids)
    for hook in hooks:
        hook.remove()
    errors = {}
    for name in names:
        x = torch.cat(inputs[name]).double()
        weight = model.get_parameter(f"{name}.weight").detach().double()
        one = quantized[name]
        change = weight - one.grid.weight(one.codes).double()
        errors[name] = float(((x @ change.T) ** 2).sum() / ((x @ weight.T) ** 2).sum())
    return errors


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (
            "backbone.layers.1.mlp.up_proj.weight",
            "quantize: a weight of backbone.layers.1.mlp.up_proj is not a finite number.",
        ),
        (
            "item_embeddings.weight",
            "quantize: a calibration activation of backbone.layers.0.self_attn.q_proj is not a "
            "finite number.",
        ),
    ],
)
def test_a_tensor_that_is_not_finite_is_named(broken: str, what: str, tmp_path: Path) -> None:
    model = build("llama", 2)
    with torch.no_grad():
        model.get_parameter(broken)[1:].fill_(float("nan"))
    with pytest.raises(BrokenRunError) as caught:
        quantize_layers(model, all_in(model, 4), batches(), RTN, nothing_finished(tmp_path))
    assert caught.value.what == what


def test_layers_with_a_singular_hessian_are_rounded_to_nearest_with_a_warning() -> None:
    pytest.importorskip("llmcompressor", reason="the extra slmc[quantize] is not installed")
    weight = random_weight()
    grid = Grid.of(weight, bits=4, group_size=16, symmetric=True)
    codes, factorized = gptq(weight, -torch.eye(64), grid, act_order=False)
    assert not factorized
    assert torch.equal(codes, grid.codes(weight))
