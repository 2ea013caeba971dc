"""All stages of slmc. To add one, write its config and its function, and add an entry here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact, Kind
from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.config import StageConfig
from slmc.data.config import PrepareConfig
from slmc.distill.config import TEACHERS, DistillConfig, TeachConfig
from slmc.distill.depth_config import DepthConfig
from slmc.evaluation.config import BaselinesConfig, EvaluateConfig, EvaluateEngineConfig
from slmc.export.config import BenchConfig, ExportConfig
from slmc.training.config import SasrecConfig

Run = Callable[[Any, dict[str, Artefact], Path], Artefact]


@dataclass(frozen=True)
class Stage:
    """Inputs (role -> kind), output and code of a stage."""

    takes: dict[str, Kind]
    gives: Kind
    config: type[StageConfig]
    target: str
    schema: int = 1
    """Version of the stage: raise it if the same config and inputs now give another result."""
    optional: frozenset[str] = frozenset()
    """Roles that may be absent."""
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of a recipe that lists several inputs -> their roles, in order."""
    fingerprint: str | None = None
    """Function of the config that returns name -> digest of the sources outside the recipe."""
    check: str | None = None
    """Function of the config and the artefact that is called after the step, also if the artefact
    was cached; it raises ``VerdictError`` to end the run."""
    extras: dict[str, str] = field(default_factory=dict)
    """Module that the stage needs -> extra of slmc that installs it."""

    def load(self) -> Run:
        """Import the stage's function, and with it torch and other heavy libraries."""
        run: Run = resolve(self.target)
        return run


EVALUATIONS: dict[Kind, str] = {"model": "evaluate", "engine": "evaluate_engine"}
"""Kind of an artefact -> name of the stage that measures how it ranks."""


def evaluation(kind: Kind, config: EvaluateConfig) -> tuple[str, StageConfig]:
    """Name and config of the stage that measures an artefact of ``kind`` as ``config`` says."""
    name = EVALUATIONS[kind]
    return name, STAGES[name].config(**dict(config))


def resolve(target: str) -> Any:
    """Import ``module:function``."""
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)


STAGES: dict[str, Stage] = {
    "prepare": Stage(
        {},
        "dataset",
        PrepareConfig,
        "slmc.data.prepare:prepare",
        schema=5,
        fingerprint="slmc.data.sources:fingerprint",
    ),
    "sasrec": Stage(
        {"data": "dataset"},
        "model",
        SasrecConfig,
        "slmc.training.pretrain:sasrec",
        schema=3,
        fingerprint="slmc.model.sources:encoder_fingerprint",
    ),
    "baselines": Stage(
        {"data": "dataset", "sasrec": "model"},
        "report",
        BaselinesConfig,
        "slmc.evaluation.baselines:baselines",
        schema=5,
    ),
    "teach": Stage(
        {"data": "dataset", "sasrec": "model", "baselines": "report", "like": "model"},
        "model",
        TeachConfig,
        "slmc.distill.teach:teach",
        schema=4,
        check="slmc.distill.must_beat:check",
        optional=frozenset({"like"}),
        fingerprint="slmc.model.sources:teacher_fingerprint",
    ),
    "depth": Stage(
        {"data": "dataset", "teacher": "model"},
        "report",
        DepthConfig,
        "slmc.distill.depth:depth",
    ),
    "distill": Stage(
        {
            "data": "dataset",
            **dict.fromkeys(TEACHERS, "model"),
            "student": "model",
            "depth": "report",
            "like": "model",
        },
        "model",
        DistillConfig,
        "slmc.distill.distill:distill",
        schema=3,
        optional=frozenset({*TEACHERS[1:], "student", "depth", "like"}),
        lists={"teachers": TEACHERS},
        fingerprint="slmc.model.sources:fingerprint",
    ),
    "prune": Stage(
        {"data": "dataset", "model": "model"},
        "model",
        PruneConfig,
        "slmc.compress.prune.prune:prune",
        extras={"torch_pruning": "prune"},
    ),
    "quantize": Stage(
        {"data": "dataset", "model": "model"},
        "model",
        QuantizeConfig,
        "slmc.compress.quantize.quantize:quantize",
        extras={"compressed_tensors": "quantize"},
    ),
    "export": Stage(
        {"data": "dataset", "model": "model"},
        "engine",
        ExportConfig,
        "slmc.export.export:export",
        schema=9,
        fingerprint="slmc.export.fingerprint:fingerprint",
        extras={"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"},
    ),
    "bench": Stage(
        {"data": "dataset", "engine": "engine", "baseline": "model"},
        "report",
        BenchConfig,
        "slmc.export.runtime.bench:bench",
        schema=4,
        optional=frozenset({"baseline"}),
        extras={"onnxruntime": "onnx"},
    ),
    "evaluate": Stage(
        {"data": "dataset", "model": "model"},
        "report",
        EvaluateConfig,
        "slmc.evaluation.evaluate:evaluate",
        schema=5,
    ),
    "evaluate_engine": Stage(
        {"data": "dataset", "engine": "engine"},
        "report",
        EvaluateEngineConfig,
        "slmc.export.evaluation:evaluate_engine",
        schema=6,
        extras={"onnxruntime": "onnx", "onnx": "onnx"},
    ),
}
