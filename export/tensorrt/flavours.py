"""The two flavours of TensorRT, and whether this machine can build plans with them or run plans.

``tensorrt`` runs on data-centre and consumer GPUs, and builds only on a machine with a GPU.
``tensorrt-rtx`` builds anywhere, and runs only on consumer GPUs. Neither runs the other's plans.

A broken installation can crash the process. So the GPU is looked up with ctypes, and each flavour
is first imported in a separate process.
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

IMPORT_S = 120.0
"""Time limit of an import, in seconds: the libraries have gigabytes, and disks can be slow."""
MAJOR, MINOR = 75, 76
"""Numbers of CUDA's attributes for the major and minor compute capability."""
Capability = tuple[int, int]


@dataclass(frozen=True)
class Flavour:
    """A flavour of TensorRT."""

    name: str
    module: str
    distributions: tuple[str, ...]
    """Packages that provide it; the first installed one gives the version."""
    builds_without_gpu: bool

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'slmc[{self.name}]'"

    def runs_on(self, capability: Capability) -> bool:
        """Return whether our plans can run on a GPU."""
        if self.name == "tensorrt":
            return capability >= (7, 5)
        # RTX supports Turing (7.5), but without float32 matmuls.
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
    """The GPU that the driver, ``libcuda.so.1``, reports."""

    capability: Capability | None = None
    """Compute capability of the first GPU."""
    problem: str | None = None
    """Why there is no GPU."""


@dataclass(frozen=True)
class Trial:
    """Result of importing a flavour and creating its builder."""

    version: str | None = None
    builds: bool = False
    problem: str | None = None


def driver() -> Driver:
    """Look up the first GPU with the driver alone, without other CUDA libraries."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(problem="no driver (libcuda.so.1)")
    status = library.cuInit(0)
    if status != 0:
        return Driver(problem=f"the driver returns error {status} for cuInit")
    number, device = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(number))
    if number.value == 0 or library.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return Driver(problem="the driver finds no GPU")
    numbers = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return Driver(capability=(numbers[0], numbers[1]))


TRY = """
import importlib, json, sys
trial = {}
try:
    trt = importlib.import_module(sys.argv[1])
    trial["version"] = trt.__version__
    trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    trial["builds"] = True
except BaseException as error:
    lines = str(error).strip().splitlines()
    trial["problem"] = f"{type(error).__name__}: {lines[0] if lines else ''}"
print(json.dumps(trial))
"""


@cache
def try_flavour(flavour: Flavour) -> Trial:
    """Import a flavour and create a builder in a separate process, and report the result."""
    if find_spec(flavour.module) is None:
        return Trial(problem="not installed")
    command = [sys.executable, "-P", "-c", TRY, flavour.module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S)
    except subprocess.TimeoutExpired:
        return Trial(problem=f"importing it takes more than {IMPORT_S:.0f} s")
    try:
        trial = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return Trial(problem=f"importing it ends the process with {done.returncode}")
    return Trial(**trial)


def module_for_building(flavour: Flavour) -> ModuleType:
    """Import a flavour that can build a plan here.

    Raises:
        MissingError: It is not installed, it is broken, or it needs a GPU and there is none.
    """
    trial, gpu = try_flavour(flavour), driver()
    if trial.version is None:
        raise MissingError(
            f"{flavour.name}: {flavour.module} cannot be used: {trial.problem}.",
            f"Install it with `{flavour.install}`.",
        )
    if gpu.problem and not flavour.builds_without_gpu:
        raise MissingError(
            f"{flavour.name}: a plan is built on the GPU that runs it; {gpu.problem}.",
            "Export on that machine, or use --tensorrt.flavour tensorrt-rtx, which builds "
            "anywhere.",
        )
    if not trial.builds:
        raise MissingError(
            f"{flavour.name} {trial.version} cannot create a builder here: {trial.problem}.",
            f"Install a version that fits the driver: `{flavour.install}`; see `slmc doctor`.",
        )
    return import_module(flavour.module)


def module_for_running(flavour: Flavour) -> tuple[ModuleType, Capability]:
    """Import a flavour that can run a plan here; return it and the compute capability of the GPU.

    Raises:
        MissingError: It is not installed or broken, there is no GPU, or it does not support it.
    """
    gpu = driver()
    if gpu.capability is None:
        raise MissingError(
            f"{flavour.name}: a plan runs on a GPU; {gpu.problem}.",
            "Run the ONNX graph of the engine instead; it needs no GPU.",
        )
    if not flavour.runs_on(gpu.capability):
        raise MissingError(
            f"{flavour.name} has no kernels for compute capability {dotted(gpu.capability)}.",
            "Export with another --tensorrt.flavour, or run the ONNX graph of the engine.",
        )
    return module_for_building(flavour), gpu.capability


def fingerprint(config: ExportConfig) -> dict[str, str]:
    """What a plan depends on, apart from the recipe: the GPU and the version of TensorRT."""
    if "tensorrt" not in config.formats:
        return {}
    flavour = FLAVOURS[config.tensorrt.flavour]
    gpu = driver().capability if flavour.name == "tensorrt" else None
    return {"tensorrt": installed_version(flavour) or "none", "gpu": dotted(gpu) if gpu else "none"}


def installed_version(flavour: Flavour) -> str | None:
    """Read the version of a flavour from package metadata, without importing it."""
    for name in flavour.distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def dotted(capability: Capability) -> str:
    """Format a compute capability, as in 9.0."""
    return f"{capability[0]}.{capability[1]}"
