"""Build a TensorRT plan into an engine: check, build, compare with the model, describe.

    tensorrt/model.onnx    graph of the plan: padded, strongly typed, standard operators
    tensorrt/model.plan    for one flavour, one version and, with full TensorRT, one GPU type

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
from typing import TYPE_CHECKING, Any

from slmc import cache as store
from slmc.artefact import sha256
from slmc.data.dataset import Dataset
from slmc.errors import BrokenRunError, MissingError, UsageError
from slmc.export import parity
from slmc.export.config import ExportConfig
from slmc.export.constraints import tensorrt_precision
from slmc.export.graph import interface, serialize
from slmc.export.reference import activation_scales, cpu_emulation
from slmc.export.runtime.engine import Histories
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import FLAVOURS, Flavour
from slmc.export.tensorrt.graph import check_blocks, check_operators, tensorrt_graph
from slmc.export.tensorrt.plan import PLAN, PLAN_GRAPH, Logger, Profile, logger_of, one_line
from slmc.model.codes import Codes
from slmc.model.loading import Recommender

if TYPE_CHECKING:
    from onnx import ModelProto
    from tensorrt import Builder, IBuilderConfig, INetworkDefinition

GPU_FEATURES = {
    "bf16": ("bf16 matmuls", (8, 0)),
    "int4": ("bf16 matmuls", (8, 0)),
    "fp8": ("8-bit floats", (8, 9)),
}
"""For each precision, the GPU feature that it needs and the first compute capability with it."""

log = logging.getLogger("slmc.export")


@dataclass(frozen=True)
class PlanJob:
    """A plan to build; everything that can be checked before the build has passed."""

    config: ExportConfig
    model: Recommender
    top_k: int
    layer_codes: dict[str, Codes]
    precision: str
    flavour: Flavour
    module: ModuleType = field(repr=False)
    profiles: tuple[Profile, ...]

    def write(self, folder: Path, data: Dataset, histories: Histories) -> dict[str, Any]:
        """Build the plan into an engine's folder, and add its entry to ``engine.json``.

        Args:
            folder: Folder of the engine, with its ``engine.json``.
            data: Its training histories calibrate the scales of int8.
            histories: Real histories for the parity check.

        Returns:
            The entry.

        Raises:
            UsageError: TensorRT lacks an operator of the graph.
            VerdictError: The graph differs from the model.
            BrokenRunError: TensorRT fails; the message contains its own.
        """
        scales: dict[str, float] = {}
        if self.precision == "int8":
            number, seed = self.config.tensorrt.calibration, self.config.seed
            sample = activation_scales.calibration_histories(data, number, seed)
            scales = activation_scales.static_scales(self.model, sample)
        graph = tensorrt_graph(self.model, self.top_k, self.precision, self.layer_codes, scales)
        check_operators(graph)
        serialize.save(graph, folder / PLAN_GRAPH)
        report = self._check_graph(graph, folder, scales, histories)
        memory_mb = self.config.tensorrt.memory_mb
        plan = build(self.flavour, folder / PLAN_GRAPH, self.profiles, memory_mb)
        (folder / PLAN).write_bytes(plan)
        entry = self.entry(folder) | {"parity": report, "executed": None}
        write_entry(folder, entry)
        gpu = flavours.driver().capability
        if gpu is not None and self.flavour.runs_on(gpu):
            entry["executed"] = self._check_plan(folder, scales, histories)
            write_entry(folder, entry)
        else:
            log.warning("tensorrt: the plan was built but not run: no GPU here can run it")
        return entry

    def entry(self, folder: Path) -> dict[str, Any]:
        """Return the entry of ``engine.json`` that describes the plan in a folder."""
        gpu = flavours.driver().capability
        bound = gpu if self.flavour.name == "tensorrt" else None
        return {
            "flavour": self.flavour.name,
            "version": str(self.module.__version__),
            "compute_capability": flavours.dotted(bound) if bound else None,
            "precision": self.precision,
            "profiles": [vars(one) for one in self.profiles],
            "graph_sha256": sha256(folder / PLAN_GRAPH),
        }

    def _check_graph(
        self, graph: "ModelProto", folder: Path, scales: dict[str, float], histories: Histories
    ) -> dict[str, Any]:
        """Compare the graph, emulated on the CPU, with the model in its precision."""
        engine = cpu_emulation.engine(graph, folder)
        reference = cpu_emulation.emulated(self.model, self.precision, self.layer_codes, scales)
        report = parity.check_answers(
            engine, reference, histories, self.config, rounded=self.precision != "fp32"
        )
        shapes = parity.compare(engine, self.model, histories, self.config.parity, self.config.seed)
        overlap = min(shape.overlap for shape in shapes)
        log.info(
            "tensorrt: with %s, %.2f %% of the top items are those of the float32 model",
            self.precision,
            100 * overlap,
        )
        names = ("max_error", "overlap", "allowed")
        return {name: report[name] for name in names} | {"overlap_with_float": round(overlap, 5)}

    def _check_plan(
        self, folder: Path, scales: dict[str, float], histories: Histories
    ) -> dict[str, Any]:
        """Run the plan on the GPU of this machine, and compare it with the model."""
        from slmc.export.tensorrt.runtime import TensorrtEngine

        reference = cpu_emulation.emulated(self.model, self.precision, self.layer_codes, scales)
        engine = TensorrtEngine(folder)
        # TensorRT chooses the kernels, and so the order of sums.
        report = parity.check_answers(engine, reference, histories, self.config, rounded=True)
        return {name: report[name] for name in ("max_error", "overlap", "allowed")}


def prepare_plan(
    config: ExportConfig, model: Recommender, top_k: int, layer_codes: dict[str, Codes]
) -> PlanJob:
    """Check that the plan can be built here, before any computation.

    Raises:
        UsageError: A layer's group size does not fit TensorRT.
        MissingError: The flavour, a GPU or a feature of the GPU is missing.
    """
    settings = config.tensorrt
    precision = tensorrt_precision(settings, {codes.bits for codes in layer_codes.values()})
    if precision == "int4":
        check_blocks(layer_codes)
    flavour = FLAVOURS[settings.flavour]
    module = flavours.module_for_building(flavour)
    gpu = flavours.driver().capability
    feature, first = GPU_FEATURES.get(precision, ("", (0, 0)))
    if gpu is not None and flavour.runs_on(gpu) and gpu < first:
        raise MissingError(
            f"tensorrt: {precision} needs {feature}; compute capability {flavours.dotted(gpu)} "
            "does not have them.",
            "Use --tensorrt.precision fp16.",
        )
    shapes = profiles(config, model.config.history)
    return PlanJob(config, model, top_k, layer_codes, precision, flavour, module, shapes)


def profiles(config: ExportConfig, history: int) -> tuple[Profile, ...]:
    """Return one profile per pair of a batch and a length, the smallest first.

    The lengths are those of the config and the model's full history.
    """
    lengths = sorted({*config.tensorrt.length, history})
    batches = sorted(set(config.tensorrt.batch))
    return tuple(Profile(batch, length) for batch, length in product(batches, lengths))


def build(flavour: Flavour, graph: Path, profiles: tuple[Profile, ...], memory_mb: int) -> bytes:
    """Parse a graph and build its plan, strongly typed.

    Args:
        flavour: The TensorRT to build with.
        graph: File of the graph; its weights may be in a second file.
        profiles: Shapes to optimize for.
        memory_mb: Workspace memory of a kernel, in MiB.

    Raises:
        UsageError: The parser does not know an operator.
        BrokenRunError: The build fails.
    """
    module, logger = flavours.module_for_building(flavour), logger_of(flavour)
    logger.errors.clear()
    builder = module.Builder(logger)
    network = _parse(builder, module, flavour, graph)
    config = _builder_config(builder, module, profiles, memory_mb, logger)
    # RTX measures kernels on the machine that runs the plan.
    timing_file = None if flavour.builds_without_gpu else _timing_file(module, flavour)
    timing_cache = None
    if timing_file is not None:
        known = timing_file.read_bytes() if timing_file.is_file() else b""
        timing_cache = config.create_timing_cache(known)
        if timing_cache is None or not config.set_timing_cache(timing_cache, False):
            # The file is damaged or from another machine: measure again.
            timing_cache = config.create_timing_cache(b"")
            config.set_timing_cache(timing_cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _broken(logger, "builds no plan")
    if timing_file is not None and timing_cache is not None:
        _replace(timing_file, bytes(timing_cache.serialize()))
    return bytes(plan)


def _parse(
    builder: "Builder", module: ModuleType, flavour: Flavour, graph: Path
) -> "INetworkDefinition":
    """Parse a graph into a strongly typed network."""
    # From version 11 on, and in RTX, every network is strongly typed.
    needs_flag = flavour.name == "tensorrt" and int(module.__version__.partition(".")[0]) < 11
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if needs_flag else 0
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, logger_of(flavour))
    if not parser.parse_from_file(str(graph)):
        error = parser.get_error(0)
        raise UsageError(
            f"tensorrt: its parser refuses {error.node_operator() or 'the graph'}: "
            f"{one_line(error.desc())}",
            "Export without tensorrt, or with another --tensorrt.precision.",
        )
    return network


def _builder_config(
    builder: "Builder",
    module: ModuleType,
    profiles: tuple[Profile, ...],
    memory_mb: int,
    logger: Logger,
) -> "IBuilderConfig":
    config = builder.create_builder_config()
    for shape in profiles:
        profile = builder.create_optimization_profile()
        largest = (shape.batch, shape.length)
        profile.set_shape(interface.INPUT, (1, 1), largest, largest)
        if config.add_optimization_profile(profile) < 0:  # the build would continue without it
            raise _broken(logger, f"refuses the profile of {shape.batch} x {shape.length}")
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, memory_mb * 2**20)
    # Keep float32 exact: TF32 has 10 bits of mantissa, and scores would tie.
    config.clear_flag(module.BuilderFlag.TF32)
    return config


def write_entry(folder: Path, entry: dict[str, Any]) -> None:
    """Add the entry of a plan to ``engine.json``."""
    file = folder / "engine.json"
    engine = json.loads(file.read_text())
    file.write_text(json.dumps(engine | {"tensorrt": entry}, indent=2, allow_nan=False) + "\n")


def _timing_file(module: ModuleType, flavour: Flavour) -> Path:
    """The file in which measured kernel times are kept, for one GPU type and version."""
    gpu = flavours.driver().capability or (0, 0)
    name = f"{flavour.name}-{module.__version__}-sm{flavours.dotted(gpu)}.timings"
    return store.root() / "tensorrt" / name


def _replace(file: Path, content: bytes) -> None:
    """Replace a file atomically: other exports may read it at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        part.write(content)
    os.replace(part.name, file)


def _broken(logger: Logger, what: str) -> BrokenRunError:
    message = logger.errors[0] if logger.errors else "no message"
    return BrokenRunError(
        f"tensorrt {what}: {one_line(message)}",
        "Use another --tensorrt.precision or a smaller --tensorrt.batch; -v shows its whole log.",
    )
