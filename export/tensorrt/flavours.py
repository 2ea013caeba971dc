"""The two flavours of TensorRT, and whether this machine can build with them or run them.

``tensorrt`` runs on data-centre and consumer GPUs and builds only where one is; ``tensorrt-rtx``
builds anywhere, and runs on consumer GPUs alone. A plan of one is never one of the other's.

Nothing here imports them: broken installations crash, so the driver is asked through ctypes
first, and each flavour is tried in a process of its own.
"""

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from slmc.errors import MissingError
from slmc.export.config import ExportConfig

TRIED_S = 120.0
"""Seconds that a library may take to load: gigabytes, from a disk that may be slow."""
MAJOR, MINOR = 75, 76
"""CUDA's numbers of the attributes that tell a compute capability."""
Capability = tuple[int, int]


@dataclass(frozen=True)
class Flavour:
    """One TensorRT."""

    name: str
    module: str
    distributions: tuple[str, ...]
    """What may have brought it: the first that is installed tells its version."""
    builds_without_gpu: bool

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'slmc[{self.name}]'"

    def runs_on(self, capability: Capability) -> bool:
        """Whether its plans of ours have kernels for a GPU."""
        if self.name == "tensorrt":
            return capability >= (7, 5)
        # RTX knows Turing (7.5), but multiplies nothing in float32 there.
        return (8, 0) <= capability < (9, 0) or capability[0] == 12


FLAVOURS = {
    "tensorrt": Flavour(
        "tensorrt", "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), False
    ),
    "tensorrt-rtx": Flavour(
        "tensorrt-rtx",
        "tensorrt_rtx",
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        True,
    ),
}


@dataclass(frozen=True)
class Driver:
    """What ``libcuda.so.1`` says."""

    capability: Capability | None = None
    """Of the first GPU."""
    problem: str | None = None
    """Why there is none."""


@dataclass(frozen=True)
class Trial:
    """What came of importing a flavour and of making a builder."""

    version: str | None = None
    builds: bool = False
    problem: str | None = None


def driver() -> Driver:
    """Ask the driver for the first GPU, without any library of CUDA's own."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(problem="no driver (libcuda.so.1)")
    answer = library.cuInit(0)
    if answer != 0:
        return Driver(problem=f"the driver answers with error {answer} to cuInit")
    number, device = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(number))
    if number.value == 0 or library.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return Driver(problem="the driver knows no GPU")
    found = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found.append(value.value)
    return Driver(capability=(found[0], found[1]))


TRY = """
import importlib, json, sys
said = {}
try:
    trt = importlib.import_module(sys.argv[1])
    said["version"] = trt.__version__
    trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    said["builds"] = True
except BaseException as error:
    lines = str(error).strip().splitlines()
    said["problem"] = f"{type(error).__name__}: {lines[0] if lines else ''}"
print(json.dumps(said))
"""


@cache
def tried(flavour: Flavour) -> Trial:
    """Import a flavour and make a builder, in a process whose end is only told."""
    if find_spec(flavour.module) is None:
        return Trial(problem="not installed")
    command = [sys.executable, "-P", "-c", TRY, flavour.module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIED_S)
    except subprocess.TimeoutExpired:
        return Trial(problem=f"importing it takes more than {TRIED_S:.0f} s")
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return Trial(problem=f"importing it ends the process with {done.returncode}")
    return Trial(**said)


def builder(flavour: Flavour) -> ModuleType:
    """The module of a flavour that can build a plan here.

    Raises:
        MissingError: It is not installed or broken, or there is no GPU and it needs one.
    """
    trial, gpu = tried(flavour), driver()
    if trial.version is None:
        raise MissingError(
            f"{flavour.name}: {flavour.module} cannot be used: {trial.problem}.",
            f"Install it with `{flavour.install}`.",
        )
    if gpu.problem and not flavour.builds_without_gpu:
        raise MissingError(
            f"{flavour.name}: a plan is built on the GPU that runs it; {gpu.problem}.",
            "Export on that machine, or take --tensorrt.flavour tensorrt-rtx, which builds "
            "anywhere.",
        )
    if not trial.builds:
        raise MissingError(
            f"{flavour.name} {trial.version} makes no builder here: {trial.problem}.",
            f"Install one that fits the driver: `{flavour.install}`; see `slmc doctor`.",
        )
    return import_module(flavour.module)


def runner(flavour: Flavour) -> tuple[ModuleType, Capability]:
    """The module of a flavour that can run a plan here, and what GPU there is.

    Raises:
        MissingError: It is not installed or broken, there is no GPU, or it is none of its own.
    """
    gpu = driver()
    if gpu.capability is None:
        raise MissingError(
            f"{flavour.name}: a plan runs on a GPU; {gpu.problem}.",
            "Run the ONNX graph of the engine instead: it needs no GPU.",
        )
    if not flavour.runs_on(gpu.capability):
        raise MissingError(
            f"{flavour.name} has no kernels for compute capability {dotted(gpu.capability)}.",
            "Export with another --tensorrt.flavour, or run the ONNX graph of the engine.",
        )
    return builder(flavour), gpu.capability


def fingerprint(config: ExportConfig) -> dict[str, str]:
    """What a plan hangs on besides the recipe: the GPU, and the version of TensorRT."""
    if "tensorrt" not in config.formats:
        return {}
    flavour = FLAVOURS[config.tensorrt.flavour]
    gpu = driver().capability if flavour.name == "tensorrt" else None
    return {"tensorrt": installed(flavour) or "none", "gpu": dotted(gpu) if gpu else "none"}


def installed(flavour: Flavour) -> str | None:
    """Version of a flavour by what the package manager knows; it is not imported."""
    for name in flavour.distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def dotted(capability: Capability) -> str:
    """A compute capability as it is written: 9.0."""
    return f"{capability[0]}.{capability[1]}"
