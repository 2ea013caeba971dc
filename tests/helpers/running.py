"""A recipe of fake stages, and what a run of it gave."""

from pathlib import Path
from typing import Any

from slmc import report
from slmc.pipeline import PlannedStep, RunResult, StepResult, run
from slmc.recipe import load as read

RECIPE = """version: 1
name: x
device: cpu
dtype: fp32
data: {source: log.csv}
steps:
  - teach: {backbone: any, layers: 4}
  - distill: {layers: 2, blocks: 2, control: true}
  - export:
  - bench:
"""
ORDER = [
    "prepare",
    "sasrec",
    "baselines",
    "teach",
    "evaluate.teach",
    "distill",
    "evaluate.distill",
    "distill.control",
    "evaluate.distill.control",
    "export",
    "evaluate.export",
    "bench",
]


def made(*sets: str, gates: str = "", **options: Any) -> RunResult:
    Path("r.yaml").write_text(RECIPE + gates)
    return run(read("r.yaml", sets=sets), report=lambda result: report.write(result), **options)


def statuses(steps: list[PlannedStep] | list[StepResult]) -> dict[str, str]:
    return {step.id: step.status for step in steps}


def digests(result: RunResult) -> dict[str, str]:
    return {step.id: step.artefact.digest for step in result.steps}
