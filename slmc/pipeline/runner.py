"""Run a recipe: compute the key of each step, and run the steps that are not in the cache.

The steps run in the order of the recipe, each model and engine followed by its evaluation. The
artefact of a step is sealed before the next step starts, so that an interrupted run resumes there.
Long steps also keep checkpoints, under their own key.
"""

import json
import logging
import shlex
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from slmc import artefact as artefacts
from slmc import cache, processes
from slmc.artefact import Artefact
from slmc.config import StageConfig, TrainConfig
from slmc.errors import (
    BrokenRunError,
    SlmcError,
    UndecidedError,
    VerdictError,
)
from slmc.pipeline import store
from slmc.pipeline.choosing import Chooser
from slmc.pipeline.inventory import register
from slmc.pipeline.judging import check_power, described, judge_gates, protocol_of
from slmc.pipeline.keys import Key, Outside, key_of
from slmc.pipeline.planning import PlannedStep, default_run_dir, plan_steps, schedule, up_to
from slmc.pipeline.points import PointResult, Tables, points_of
from slmc.pipeline.preflight import (
    check_backbones,
    check_devices,
    check_disk,
    check_engines,
    check_extras,
)
from slmc.pipeline.rundir import RunDir
from slmc.pipeline.store import Status
from slmc.recipe import Recipe, resolved_yaml
from slmc.recipe.steps import Step
from slmc.stages import STAGES, resolve
from slmc.system import refused

if TYPE_CHECKING:
    from slmc.evaluation.verdict import Verdict

log = logging.getLogger("slmc.pipeline")


@dataclass(frozen=True)
class StepResult:
    """A finished step."""

    id: str
    stage: str
    key: Key
    status: Status
    artefact: Artefact
    seconds: float | None
    """Seconds that the step took, in this run or an earlier one; None if not known."""


@dataclass(frozen=True)
class Ended:
    """The step that ended a run early, because its own check failed."""

    step: str
    error: VerdictError


@dataclass
class RunResult:
    """The artefacts, evaluations and verdicts of a run."""

    recipe: Recipe
    run_dir: Path
    steps: list[StepResult] = field(default_factory=list)
    """In the order of running, with the evaluations (``evaluate.ID``)."""
    evaluations: dict[str, Artefact] = field(default_factory=dict)
    """Id of a model or engine step -> report of its evaluation."""
    points: list[PointResult] = field(default_factory=list)
    """The steps that are repeated, each at each point, over its seeds."""
    verdicts: list["Verdict"] = field(default_factory=list)
    advisory: set[int] = field(default_factory=set)
    """Positions in ``verdicts`` that do not decide the exit code."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the results has to know in addition."""
    until: str | None = None
    ended: Ended | None = None
    """The step that ended the run early; None if all steps ran."""
    files: list[Path] = field(default_factory=list)
    """Report files that were written."""
    chooser: Chooser = field(init=False)
    """The copies that were chosen on validation, and the copies that belong together."""

    def __post_init__(self) -> None:
        """Start without choices."""
        self.chooser = Chooser(self.recipe)

    def artefacts(self) -> dict[str, Artefact]:
        """Step id -> artefact."""
        return {step.id: step.artefact for step in self.steps}

    @property
    def tables(self) -> Tables:
        """The per-user tables of the run."""
        return Tables(self.recipe, self.artefacts(), self.evaluations, self.chooser)

    @property
    def protocol(self) -> dict[str, Any]:
        """Ranking protocol of the run; empty before the baselines were measured."""
        report = next((step.artefact for step in self.steps if step.stage == "baselines"), None)
        return {} if report is None else protocol_of(report, self.recipe.evaluate.split)


Watch = Callable[[PlannedStep | StepResult], None]
"""Called with each step before it starts, and with its result."""
Report = Callable[[RunResult], list[Path]]
"""Writes the report of a run into its folder; returns the files."""


def run(
    recipe: Recipe,
    *,
    run_dir: Path | None = None,
    until: str | None = None,
    on_step: Watch = lambda _: None,
    report: Report = lambda _: [],
) -> RunResult:
    """Run a recipe, judge its gates, and write ``run_dir``.

    A step whose own check fails ends the run; the report of the finished steps is still written.

    Args:
        recipe: The recipe.
        run_dir: Folder for links, lock and report; :func:`default_run_dir` if left out.
        until: Id of the last step to run.
        on_step: Called with each step before it starts, and with its result.
        report: Writes the report of the finished run, such as :func:`slmc.report.write`.

    Raises:
        VerdictError: A step's own check (parity, ``must_beat``) fails.
        SlmcError: A step cannot run.
        BrokenRunError: A step failed; the same command resumes from there.
    """
    processes.check_launcher()
    whole = schedule(recipe)
    order = up_to(whole, until, recipe)
    folder = RunDir(run_dir or default_run_dir(recipe))
    outside = Outside()
    check_extras(order)
    planned = {
        step.id: step for step in plan_steps(order, Chooser(recipe), folder.locked(), outside)
    }
    to_run = [step for step in order if planned[step.id].status != "hit"]
    if to_run:
        check_devices(to_run)
        check_engines(to_run)
        check_disk(to_run)
        check_backbones(recipe, to_run)
    folder.open(resolved_yaml(recipe, folder.path))
    if processes.is_main():
        register(folder.path)
    result = RunResult(recipe, folder.path, until=until)
    with _sigterm_ends_the_run():
        _run_steps(order, planned, [step.id for step in whole], result, folder, outside, on_step)
    _judge(result, folder)
    result.files = report(result)
    if result.ended is not None:
        for file in result.files:
            log.info("wrote %s", file)
        raise result.ended.error
    return result


def join(recipe: Recipe, *, until: str | None = None) -> RunResult:
    """Run a recipe in a process that helps the main process (:mod:`slmc.processes`).

    It trains with the main process and takes every artefact from the cache; the folder of the run
    is the main process's. Raises as :func:`run`.
    """
    with tempfile.TemporaryDirectory(prefix="slmc-") as folder:
        return run(recipe, run_dir=Path(folder), until=until)


def _judge(result: RunResult, folder: RunDir) -> None:
    """Judge the gates and write ``metrics.json``."""
    judgement = judge_gates(result.recipe, result.artefacts(), result.evaluations, result.chooser)
    result.verdicts, result.advisory = judgement.verdicts, judgement.advisory
    result.notes += judgement.notes
    if result.recipe.written:
        result.points = points_of(result.tables, result.protocol)
    folder.write_json("metrics.json", summary(result))


def summary(result: RunResult) -> dict[str, Any]:
    """The results of a run as JSON data: the contents of its ``metrics.json``."""
    return {
        "recipe": result.recipe.name,
        "smoke": result.recipe.smoke,
        "steps": [
            {
                "id": step.id,
                "stage": step.stage,
                "key": step.key.digest,
                "digest": step.artefact.digest,
                "metrics": step.artefact.manifest.metrics,
            }
            for step in result.steps
        ],
        "evaluations": {
            step_id: json.loads(report.file("metrics.json").read_bytes())
            for step_id, report in result.evaluations.items()
        },
        "verdicts": [
            {**described(verdict), "binding": i not in result.advisory}
            for i, verdict in enumerate(result.verdicts)
        ],
        **({"points": [asdict(point) for point in result.points]} if result.points else {}),
        **({"chosen": result.chooser.chosen} if result.chooser.chosen else {}),
        "notes": result.notes,
        "ended": result.ended and {"step": result.ended.step, "why": result.ended.error.what},
    }


def exit_code(result: RunResult) -> int:
    """0 if every gate passed, 1 if one failed, 5 if there are gates but none could be judged."""
    binding = [v for i, v in enumerate(result.verdicts) if i not in result.advisory]
    if any(verdict.failed for verdict in binding):
        return 1
    undecided = bool(result.recipe.gates) and not result.verdicts and result.until is None
    return UndecidedError.exit_code if undecided else 0


def run_stage(
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, Artefact],
    *,
    out: Path | None = None,
    force: bool = False,
) -> Artefact:
    """Run one stage, with the same keys and cache as a recipe.

    Args:
        stage: Name of the stage.
        config: Its settings.
        inputs: Role -> artefact.
        out: Where to copy the artefact to; it also stays in the cache.
        force: Whether to replace an artefact at ``out``.

    Raises:
        ArtefactError: ``out`` exists.
        VerdictError: The stage's own check fails; an artefact that was made is kept.
        SlmcError: As :func:`run`.
    """
    processes.check_launcher()
    if not processes.is_main():
        out = None
    if out is not None:
        artefacts.check_free(out, force=force)
    outside = Outside()
    step = Step(stage, stage, outside.resolved(config), {})
    check_extras([step])
    check_devices([step])
    digests = {role: artefact.digest for role, artefact in inputs.items()}
    key = key_of(stage, step.config, digests, outside)
    with _sigterm_ends_the_run():
        cached, _ = _make(step, key, dict(inputs), "Run the same command again")
        result = cached if out is None else artefacts.copy(cached, out, force=force)
    _check(step, cached)
    return result


def _run_steps(
    order: list[Step],
    planned: Mapping[str, PlannedStep],
    ids: list[str],
    result: RunResult,
    folder: RunDir,
    outside: Outside,
    on_step: Watch,
) -> None:
    recipe, until = result.recipe, result.until
    again = f"Resume with `{recipe.command}{f' --until {until}' if until else ''}`"
    command = recipe.command
    if folder.path != default_run_dir(recipe):
        command += f" -o {shlex.quote(str(folder.path))}"
    done: dict[str, StepResult] = {}
    for number, step in enumerate(order, start=1):
        taken = result.chooser.inputs_of(step)
        inputs = {role: done[taken[role]].artefact for role in step.inputs}
        step = replace(step, config=outside.resolved(step.config))
        digests = {role: artefact.digest for role, artefact in inputs.items()}
        key = planned[step.id].key
        if key is None or key.parts["inputs"] != digests:
            key = key_of(step.stage, step.config, digests, outside)
        on_step(replace(planned[step.id], key=key, status=store.status(key.digest)))
        try:
            artefact, status = _make(step, key, inputs, again)
            seconds = store.seconds(key.digest)
            done[step.id] = StepResult(step.id, step.stage, key, status, artefact, seconds)
            result.steps.append(done[step.id])
            if step.measures is not None:
                result.evaluations[step.measures] = artefact
            if step.validates is not None:
                result.chooser.reports[step.validates] = artefact
            folder.link(number, step.id, artefact)
            locked = {name: (one.key, one.artefact) for name, one in done.items()}
            folder.write_lock(recipe.name, command, ids, locked)
            on_step(done[step.id])
            _check(step, artefact)
        except VerdictError as error:
            result.ended = Ended(step.id, error)
            return
        if step.stage == "prepare":
            _refuse_nothing_to_rank(recipe, artefact)
        if step.stage == "baselines":
            notes = check_power(recipe, artefact)
            result.notes += [note for note in notes if note not in result.notes]


def _check(step: Step, artefact: Artefact) -> None:
    """Call the step's own check, which may end the run with a ``VerdictError``."""
    check = STAGES[step.stage].check
    if check is not None:
        resolve(check)(step.config, artefact)


def _make(step: Step, key: Key, inputs: dict[str, Artefact], again: str) -> tuple[Artefact, Status]:
    """The step's artefact, from the cache or new; any failure becomes an error in two lines."""

    def run_at(out: Path) -> Artefact:
        return STAGES[step.stage].load()(step.config, inputs, out)

    try:
        trains = isinstance(step.config, TrainConfig) and step.config.epochs > 0
        return store.make(key.digest, STAGES[step.stage].gives, run_at, trains=trains)
    except SlmcError:
        raise
    except Exception as error:
        log.debug("step %s failed", step.id, exc_info=True)
        if (system_error := refused(error)) is not None:
            raise type(system_error)(
                f"step {step.id}: {system_error.what}",
                f"{system_error.remedy} The cache is {cache.root()} (SLMC_CACHE). What was "
                f"computed is kept. {again}.",
            ) from error
        lines = str(error).strip().splitlines() or [""]
        memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
        advice = " with fewer `rows` (or a smaller `batch`), since memory ran out" * memory
        raise BrokenRunError(
            f"step {step.id}: {type(error).__name__}: {lines[0]}".removesuffix(": "),
            f"What was computed is kept. {again}{advice}; log.jsonl has the full traceback.",
        ) from error


def _refuse_nothing_to_rank(recipe: Recipe, dataset: Artefact) -> None:
    users = dataset.manifest.metrics.get(f"{recipe.evaluate.split}_users")
    if users == 0:
        raise UndecidedError(
            f"no user of {recipe.data.source} has a {recipe.evaluate.split} target after the "
            "split: there is nothing to rank.",
            "Lower data.core, move the dates of data.split, or use a longer log.",
        )


@contextmanager
def _sigterm_ends_the_run() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit(143)``, so that locks are released before the exit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
