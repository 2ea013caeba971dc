"""What can run on this machine: versions, processor, memory, disk, GPU, extras.

The GPU driver is read through ``libcuda.so.1`` and library versions from their metadata, without
importing torch, so that a broken installation is reported instead of crashing.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from slmc import __version__, cache
from slmc.export.tensorrt.flavours import FLAVOURS, dotted, driver, try_flavour

State = Literal["ok", "without", "missing"]
"""ok; without: missing, but slmc runs without it; missing: slmc does not run."""

NEEDED_PYTHON = (3, 11)
REQUIRED = (
    "torch", "transformers", "accelerate", "peft", "safetensors", "polars", "numpy", "pydantic",
)  # fmt: skip
EXTRAS = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "prune": ("torch_pruning",),
    "quantize": ("llmcompressor", "compressed_tensors"),
    "ray": ("ray",),
    "spark": ("pyspark",),
}
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")
LOW_DISK_GB = 3
HUB = "https://huggingface.co/api/models?limit=1"
HUB_S = 5.0


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    state: State
    found: str


def examine(*, hub: bool = False) -> list[Finding]:
    """Check the machine.

    Args:
        hub: Whether to check the connection to the Hugging Face hub.
    """
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", _python),
        ("libraries", _libraries),
        ("extras", _extras),
        ("processor", _processor),
        ("memory", _memory),
        ("cache", _cache),
        ("CUDA", _cuda),
        ("TensorRT", _tensorrt),
    ]
    if hub:
        checks.append(("hub", _hub))
    findings = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:
            # A failed check is a finding, not a crash.
            findings.append(Finding(name, "without", f"{type(error).__name__}: {error}"))
    return findings


def _python() -> list[Finding]:
    good = sys.version_info >= NEEDED_PYTHON
    needs = "" if good else f"; slmc needs {'.'.join(map(str, NEEDED_PYTHON))} or newer"
    text = f"{platform.python_version()} on {platform.platform()}{needs}"
    return [
        Finding("slmc", "ok", __version__),
        Finding("python", "ok" if good else "missing", text),
    ]


def _libraries() -> list[Finding]:
    return [_library(name, "missing") for name in REQUIRED]


def _library(name: str, absent: State) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, absent, f"not installed; `pip install {name}`")


def _extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        lacking = [name for name in modules if importlib.util.find_spec(name) is None]
        if lacking:
            text = f"{', '.join(lacking)} not installed; `pip install 'slmc[{extra}]'`"
            findings.append(Finding(f"extra {extra}", "without", text))
        else:
            text = ", ".join(f"{name} {version(name)}" for name in modules)
            findings.append(Finding(f"extra {extra}", "ok", text))
    return findings


def _processor() -> list[Finding]:
    flags: set[str] = set()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
            elif key.strip() == "model name":
                name = value.strip()
    has = [flag for flag in FLAGS if flag in flags]
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    bf16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & flags)
    vnni = bool({"avx512_vnni", "avx_vnni"} & flags)
    return [
        Finding("processor", "ok", f"{name}, {cores} cores; {', '.join(has) or 'no known flags'}"),
        Finding(
            "bf16 on the processor", "ok" if bf16 else "without", _yes_or(bf16, "fp32 is used")
        ),
        Finding("VNNI (int8)", "ok" if vnni else "without", _yes_or(vnni, "int8 is slower")),
    ]


def _yes_or(available: bool, otherwise: str) -> str:
    return "yes" if available else f"no: {otherwise}"


def _memory() -> list[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    limited = f", limited to {int(text) / 1e9:.1f} GB" if text.isdigit() else ""
    return [Finding("memory", "ok", f"{total / 1e9:.1f} GB{limited}")]


def _cache() -> list[Finding]:
    root = cache.root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        text = f"{root} cannot be written ({error.strerror}); set SLMC_CACHE to another folder"
        return [Finding("cache", "missing", text)]
    free = shutil.disk_usage(root).free / 1e9
    low = free < LOW_DISK_GB
    text = f"{root}, {free:.1f} GB free" + "; an LLM needs 3 GB" * low
    return [Finding("cache", "without" if low else "ok", text)]


def _cuda() -> list[Finding]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [Finding("CUDA", "without", "no driver (libcuda.so.1): slmc uses the processor")]
    answer = driver.cuInit(0)
    if answer != 0:
        return [Finding("CUDA", "without", f"the driver returns error {answer} for cuInit")]
    number, driver_version = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(number))
    driver.cuDriverGetVersion(ctypes.byref(driver_version))
    major, minor = driver_version.value // 1000, driver_version.value % 1000 // 10
    names = [_device(driver, ordinal) for ordinal in range(number.value)]
    text = f"driver for CUDA {major}.{minor}: {', '.join(names) or 'no device'}"
    return [Finding("CUDA", "ok" if names else "without", text)]


def _device(driver: ctypes.CDLL, ordinal: int) -> str:
    """Name and memory of a GPU."""
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return f"{name.value.decode(errors='replace')} ({size.value / 1e9:.0f} GB)"


def _tensorrt() -> list[Finding]:
    """Each flavour of TensorRT: whether it can build and run plans on this machine."""
    gpu, findings = driver(), []
    for flavour in FLAVOURS.values():
        what, trial = f"TensorRT ({flavour.name})", try_flavour(flavour)
        if trial.version is None:
            text = f"{trial.problem}; `{flavour.install}`"
            findings.append(Finding(what, "without", text))
            continue
        builds = trial.builds and (flavour.builds_without_gpu or gpu.capability is not None)
        runs = trial.builds and gpu.capability is not None and flavour.runs_on(gpu.capability)
        if gpu.capability is None:
            why = gpu.problem or "no GPU"
        else:
            why = trial.problem or f"no kernels for compute capability {dotted(gpu.capability)}"
        text = f"{trial.version}: {'can' if builds else 'cannot'} build plans"
        text += ", can run them" if runs else f", cannot run them: {why}"
        findings.append(Finding(what, "ok" if runs else "without", text))
    return findings


def _hub() -> list[Finding]:
    if cache.offline():
        return [Finding("hub", "without", "not checked: offline")]
    try:
        with urllib.request.urlopen(HUB, timeout=HUB_S):
            return [Finding("hub", "ok", "huggingface.co answers")]
    except OSError as error:
        reason = getattr(error, "reason", error)
        return [Finding("hub", "without", f"huggingface.co cannot be reached: {reason}")]
