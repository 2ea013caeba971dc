"""Run recipes and single stages against the cache.

Read ``runner``, ``planning`` (what would run), ``keys``, ``store`` (the cache), ``preflight``
(checks before the first step), ``judging`` (gates), ``rundir`` (a run's folder), ``saved_run``
(read that folder) and ``inventory`` (contents of the cache). Imported by ``report`` and
``commands``.
"""

from slmc.pipeline.planning import PlannedStep, default_run_dir, plan, schedule
from slmc.pipeline.runner import RunResult, StepResult, exit_code, join, run, run_stage, summary
from slmc.pipeline.store import find

__all__ = [
    "PlannedStep",
    "RunResult",
    "StepResult",
    "default_run_dir",
    "exit_code",
    "find",
    "join",
    "plan",
    "run",
    "run_stage",
    "schedule",
    "summary",
]
