"""The choice of device and precision, without the devices."""

import pytest
import torch

from slmc.errors import MissingError
from slmc.model import device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return monkeypatch


def test_an_old_processor_computes_in_float32(machine: pytest.MonkeyPatch) -> None:
    assert device.choose() == device.Placement(torch.device("cpu"), torch.float32)
    assert not device.choose().mixed


@pytest.mark.parametrize("feature", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_a_processor_with_bf16_uses_it(machine: pytest.MonkeyPatch, feature: str) -> None:
    machine.setattr(torch.cpu, feature, lambda: True)
    machine.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert device.choose().dtype is torch.bfloat16
    assert device.choose(dtype="fp32").dtype is torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float32)]
)
def test_a_gpu_is_used_in_the_precision_that_it_supports(
    machine: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: 1)
    machine.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.choose() == device.Placement(torch.device("cuda"), dtype)
    assert device.choose(device="cpu", dtype="fp32").device.type == "cpu"


def test_a_missing_gpu(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError) as caught:
        device.choose(device="cuda:1")
    assert caught.value.what == f"device cuda:1: torch {torch.__version__} sees 0 CUDA devices."
    assert caught.value.exit_code == 4
