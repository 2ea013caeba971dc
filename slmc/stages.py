"""Every stage slmc knows. To add a technique, write its config and function and add a line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact, Kind
from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.config import StageConfig
from slmc.data.config import PrepareConfig
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.evaluation.config import BaselinesConfig, EvaluateConfig, EvaluateEngineConfig
from slmc.export.config import BenchConfig, ExportConfig
from slmc.training.config import SasrecConfig

Run = Callable[[Any, dict[str, Artefact], Path], Artefact]


@dataclass(frozen=True)
class Stage:
    """What a stage takes (role and kind) and gives, and where its code is."""

    takes: dict[str, Kind]
    gives: Kind
    config: type[StageConfig]
    target: str
    schema: int = 1
    """Raise it when the same config and inputs come to mean another result."""
    optional: frozenset[str] = frozenset()
    """Roles that may be left out."""
    fingerprint: str | None = None
    """Function of the config that names what lies outside the recipe: name -> digest."""
    check: str | None = None
    """Function of the config and the artefact that decides, once the step is done or found in
    the cache, whether the run goes on; it raises ``VerdictError`` where it does not."""
    extras: dict[str, str] = field(default_factory=dict)
    """Module that the stage needs -> extra of slmc that brings it."""

    def load(self) -> Run:
        """Import the stage's function; only now are torch and the like imported."""
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
        schema=3,
        fingerprint="slmc.data.sources:fingerprint",
    ),
    "sasrec": Stage(
        {"data": "dataset"},
        "model",
        SasrecConfig,
        "slmc.training.pretrain:sasrec",
        schema=2,
    ),
    "baselines": Stage(
        {"data": "dataset", "sasrec": "model"},
        "report",
        BaselinesConfig,
        "slmc.evaluation.baselines:baselines",
        schema=3,
    ),
    "teach": Stage(
        {"data": "dataset", "sasrec": "model", "baselines": "report", "like": "model"},
        "model",
        TeachConfig,
        "slmc.distill.teach:teach",
        schema=3,
        check="slmc.distill.must_beat:check",
        optional=frozenset({"like"}),
        fingerprint="slmc.model.sources:fingerprint",
    ),
    "distill": Stage(
        {"data": "dataset", "teacher": "model", "student": "model", "like": "model"},
        "model",
        DistillConfig,
        "slmc.distill.distill:distill",
        schema=2,
        optional=frozenset({"student", "like"}),
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
        fingerprint="slmc.export.tensorrt.flavours:fingerprint",
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
        schema=3,
    ),
    "evaluate_engine": Stage(
        {"data": "dataset", "engine": "engine"},
        "report",
        EvaluateEngineConfig,
        "slmc.export.evaluation:evaluate_engine",
        schema=4,
        extras={"onnxruntime": "onnx", "onnx": "onnx"},
    ),
}
