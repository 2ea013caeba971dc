"""A TensorRT plan in an engine: checked before it is built, proven, and described.

    tensorrt/model.onnx    what the plan was built from: padded, typed, standard operators
    tensorrt/model.plan    for one flavour, version and, with full TensorRT, one kind of GPU

Letters: B histories, L their padded length.
"""

import json
import logging
import os
import tempfile
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from slmc import cache as store
from slmc.artefact import sha256
from slmc.data.dataset import Dataset
from slmc.errors import BrokenRunError, MissingError, UsageError
from slmc.export import parity
from slmc.export.config import ExportConfig
from slmc.export.graph import interface, serialize
from slmc.export.reference import activation_scales as calibration
from slmc.export.reference import cpu_emulation
from slmc.export.runtime.engine import Histories
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt import graph as typed
from slmc.export.tensorrt.flavours import FLAVOURS, Flavour
from slmc.export.tensorrt.plan import TYPED, Profile, logger_of
from slmc.export.triton.repository import PLAN
from slmc.model.codes import Codes
from slmc.model.loading import Recommender

NEEDED = {
    "bf16": ("products in bf16", (8, 0)),
    "int4": ("products in bf16", (8, 0)),
    "fp8": ("8-bit floats", (8, 9)),
}
"""By precision, what it takes of a GPU, and compute capability of the first that have it."""

log = logging.getLogger("slmc.export")


@dataclass(frozen=True)
class Planned:
    """A plan that can be built here, as far as can be said before it is."""

    config: ExportConfig
    model: Recommender
    top_k: int
    own: dict[str, Codes]
    precision: str
    flavour: Flavour
    module: ModuleType = field(repr=False)
    profiles: tuple[Profile, ...]

    def write(self, folder: Path, data: Dataset, histories: Histories) -> dict[str, Any]:
        """Build the plan into an engine's folder, and its entry into ``engine.json``.

        Args:
            folder: Of the engine; ``engine.json`` is there.
            data: Its training histories set the scales of int8.
            histories: Real ones, to prove the graph with.

        Returns:
            What the entry says.

        Raises:
            UsageError: TensorRT has no such operator.
            VerdictError: The graph does not give the model's answers.
            BrokenRunError: TensorRT fails; its own words are in the message.
        """
        scales: dict[str, float] = {}
        if self.precision == "int8":
            number, seed = self.config.tensorrt.calibration, self.config.seed
            drawn = calibration.histories(data, number, seed)
            scales = calibration.static_scales(self.model, drawn)
        graph = typed.tensorrt_graph(self.model, self.top_k, self.precision, self.own, scales)
        typed.check_operators(graph)
        serialize.save(graph, folder / TYPED)
        proof = self._prove(graph, folder, scales, histories)
        plan = build(self.module, self.flavour, folder / TYPED, self.profiles, self.config)
        (folder / PLAN).write_bytes(plan)
        entry = self.entry(folder) | {"parity": proof, "executed": None}
        describe(folder, entry)
        gpu = flavours.driver().capability
        if gpu is not None and self.flavour.runs_on(gpu):
            entry["executed"] = self._execute(folder, scales, histories)
            describe(folder, entry)
        else:
            log.warning("tensorrt: the plan was built and not run: no GPU here that it runs on")
        return entry

    def entry(self, folder: Path) -> dict[str, Any]:
        """What ``engine.json`` has to say of the plan in a folder, so that it can be loaded."""
        gpu = flavours.driver().capability
        bound = gpu if self.flavour.name == "tensorrt" else None
        return {
            "flavour": self.flavour.name,
            "version": str(self.module.__version__),
            "compute_capability": flavours.dotted(bound) if bound else None,
            "precision": self.precision,
            "profiles": [vars(one) for one in self.profiles],
            "graph_sha256": sha256(folder / TYPED),
        }

    def _prove(
        self, graph: Any, folder: Path, scales: dict[str, float], histories: Histories
    ) -> dict[str, Any]:
        """The graph against the model in its precision, and how it ranks beside the model."""
        answers = cpu_emulation.engine(graph, folder)
        reference = cpu_emulation.emulated(self.model, self.precision, self.own, scales)
        report = parity.judged(
            answers, reference, histories, self.config, rounds=self.precision != "fp32"
        )
        found = parity.compare(answers, self.model, histories, self.config.parity, self.config.seed)
        kept = min(shape.overlap for shape in found)
        said = "tensorrt: in %s, %.2f %% of the items are those of the model in float32"
        log.info(said, self.precision, 100 * kept)
        names = ("max_error", "overlap", "allowed")
        return {name: report[name] for name in names} | {"overlap_with_float": round(kept, 5)}

    def _execute(
        self, folder: Path, scales: dict[str, float], histories: Histories
    ) -> dict[str, Any]:
        """The same comparison, with the plan itself on the GPU of this machine."""
        from slmc.export.tensorrt.runtime import TensorrtEngine

        reference = cpu_emulation.emulated(self.model, self.precision, self.own, scales)
        engine = TensorrtEngine(folder)
        # TensorRT chooses kernels, and thereby the order of sums, for itself.
        report = parity.judged(engine, reference, histories, self.config, rounds=True)
        return {name: report[name] for name in ("max_error", "overlap", "allowed")}


def planned(config: ExportConfig, model: Recommender, top_k: int, own: dict[str, Codes]) -> Planned:
    """See whether a plan can be built here, before anything is computed.

    Raises:
        UsageError: TensorRT cannot have this model, top-k, precision or these profiles.
        MissingError: The flavour, a GPU that it needs, or a type of the GPU's is not there.
    """
    settings = config.tensorrt
    codes = any(typed.has_4_bits(one) for one in own.values())
    precision = settings.precision or ("int4" if codes else "bf16")
    if precision == "int4":
        typed.check_blocks(own)
    shapes = profiles(config, model.config.history)
    flavour = FLAVOURS[settings.flavour]
    module = flavours.builder(flavour)
    gpu = flavours.driver().capability
    needs, least = NEEDED.get(precision, ("", (0, 0)))
    if gpu is not None and flavour.runs_on(gpu) and gpu < least:
        raise MissingError(
            f"tensorrt: {precision} needs {needs}, which compute capability "
            f"{flavours.dotted(gpu)} has not.",
            "Take --tensorrt.precision fp16.",
        )
    return Planned(config, model, top_k, own, precision, flavour, module, shapes)


def profiles(config: ExportConfig, history: int) -> tuple[Profile, ...]:
    """Every pair of a batch and a length, the smallest first; the model's history is a length.

    Raises:
        UsageError: A length is more than the model's history.
    """
    lengths = sorted({*config.tensorrt.length, history})
    if lengths[-1] > history:
        raise UsageError(
            f"tensorrt.length: {lengths[-1]} is more than the model's history of {history}.",
            f"Take less than {history}; that itself always has a profile.",
        )
    batches = sorted(set(config.tensorrt.batch))
    return tuple(Profile(batch, length) for batch, length in product(batches, lengths))


def build(
    module: ModuleType,
    flavour: Flavour,
    graph: Path,
    shapes: tuple[Profile, ...],
    config: ExportConfig,
) -> bytes:
    """Parse a graph and build its plan, strongly typed.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        flavour: Which of them it is.
        graph: The file; weights may lie beside it.
        shapes: One optimization profile each.
        config: Of the export: the memory that kernels may take.

    Raises:
        UsageError: The parser meets an operator that it has not.
        BrokenRunError: The build fails.
    """
    logger = logger_of(flavour)
    logger.errors.clear()
    builder = module.Builder(logger)
    old = flavour.name == "tensorrt" and int(module.__version__.partition(".")[0]) < 11
    # From 11 on, and in RTX, every network is strongly typed.
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if old else 0
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        error = parser.get_error(0)
        raise UsageError(
            f"tensorrt: its parser refuses {error.node_operator() or 'the graph'}: "
            f"{_line(error.desc())}",
            "Export without tensorrt, or with another --tensorrt.precision.",
        )
    settings = builder.create_builder_config()
    for shape in shapes:
        profile = builder.create_optimization_profile()
        largest = (shape.batch, shape.length)
        profile.set_shape(interface.INPUT, (1, 1), largest, largest)
        if settings.add_optimization_profile(profile) < 0:  # the build would go on without it
            raise _broken(logger, f"refuses the profile of {shape.batch} x {shape.length}")
    pool = module.MemoryPoolType.WORKSPACE
    settings.set_memory_pool_limit(pool, config.tensorrt.memory_mb * 2**20)
    # What is float32 in the graph is: scores that are rounded to 10 bits tie.
    settings.clear_flag(module.BuilderFlag.TF32)
    timings = None if flavour.builds_without_gpu else _timings(module, flavour)
    kept = None
    if timings is not None:
        known = timings.read_bytes() if timings.is_file() else b""
        kept = settings.create_timing_cache(known)
        if kept is None or not settings.set_timing_cache(kept, False):
            # What another machine or a broken disk left: measured anew.
            kept = settings.create_timing_cache(b"")
            settings.set_timing_cache(kept, False)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise _broken(logger, "builds no plan")
    if timings is not None and kept is not None:
        _replace(timings, bytes(kept.serialize()))
    return bytes(plan)


def describe(folder: Path, entry: dict[str, Any]) -> None:
    """Put the entry of a plan into ``engine.json``."""
    file = folder / "engine.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"tensorrt": entry}, indent=2, allow_nan=False) + "\n")


def _timings(module: ModuleType, flavour: Flavour) -> Path:
    """Where measured kernel times are kept; RTX measures on the machine that runs the plan."""
    gpu = flavours.driver().capability or (0, 0)
    name = f"{flavour.name}-{module.__version__}-sm{flavours.dotted(gpu)}.timings"
    return store.root() / "tensorrt" / name


def _replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: other exports read it at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        part.write(content)
    os.replace(part.name, file)


def _broken(logger: Any, what: str) -> BrokenRunError:
    return BrokenRunError(
        f"tensorrt {what}: {_line(logger.errors[0] if logger.errors else 'it says nothing')}",
        "Take another --tensorrt.precision or smaller --tensorrt.batch; -v shows its whole log.",
    )


def _line(text: str) -> str:
    return " ".join(text.split())
