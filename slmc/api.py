"""The Python API: what ``import slmc`` offers. No torch here.

``load`` opens a model or an engine, ``run`` runs a recipe, ``evaluate`` measures how a model ranks.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slmc import artefact as artefacts
from slmc import pipeline
from slmc.artefact import Artefact
from slmc.errors import ArtefactError, UndecidedError, UsageError
from slmc.pipeline import RunResult, StepResult
from slmc.serving.opening import load, served_at
from slmc.serving.recommender import (
    Engine,
    Recommendation,
    Recommendations,
    Recommender,
    Served,
)

if TYPE_CHECKING:
    import polars as pl

    from slmc.evaluation.verdict import Verdict

__all__ = [
    "Engine",
    "Evaluation",
    "Recommendation",
    "Recommendations",
    "Recommender",
    "Run",
    "evaluate",
    "load",
    "run",
]

Outcome = Literal["pass", "regression", "inconclusive", "none", "undecided"]


@dataclass(frozen=True, eq=False)
class Step:
    """A finished step of a run."""

    id: str
    stage: str
    status: str
    """``hit`` (it was in the cache), ``resume`` or ``run``."""
    seconds: float | None
    """Seconds that it took, in this run or an earlier one; None if not known."""
    artefact: Artefact

    @property
    def path(self) -> Path:
        """Folder of its artefact."""
        return self.artefact.path

    @property
    def metrics(self) -> dict[str, Any]:
        """What the step itself measured."""
        return self.artefact.manifest.metrics

    def load(self, **options: Any) -> Recommender | Engine:
        """Open its model or engine; options as for :func:`slmc.load`."""
        return load(self.artefact, **options)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run of a recipe."""

    result: RunResult
    """What the pipeline returned, with all details."""

    @property
    def path(self) -> Path:
        """Folder of the run, with ``report.html``."""
        return self.result.run_dir

    @property
    def verdict(self) -> Outcome:
        """The verdict on the run: that of its worst binding gate.

        ``pass``: every binding gate passed. ``regression`` or ``inconclusive``: one did not.
        ``none``: the recipe has no gate that binds. ``undecided``: none of its gates could be
        judged.
        """
        binding = self._binding
        failed = [one.outcome for one in binding if one.failed]
        if failed:
            # A gate with `anomalous: fail` fails although its outcome is a pass.
            return "inconclusive" if set(failed) == {"inconclusive"} else "regression"
        if pipeline.exit_code(self.result) == UndecidedError.exit_code:
            return "undecided"
        return "pass" if binding else "none"

    @property
    def passed(self) -> bool:
        """Whether ``slmc run`` would exit with 0."""
        return pipeline.exit_code(self.result) == 0

    @property
    def verdicts(self) -> list["Verdict"]:
        """The verdict of each gate, in the order of the recipe."""
        return list(self.result.verdicts)

    @cached_property
    def steps(self) -> Mapping[str, Step]:
        """Id of a step -> the step, in the order of running."""
        return {one.id: _step(one) for one in self.result.steps}

    @cached_property
    def evaluations(self) -> "Mapping[str, Evaluation]":
        """Id of a model or engine step -> how it ranks."""
        return {name: Evaluation(report) for name, report in self.result.evaluations.items()}

    @cached_property
    def table(self) -> "pl.DataFrame":
        """The main table of the report, one row per baseline, model and engine.

        ``step``, ``kind``, ``parameters``, ``size_mb``, ``metric`` (name), ``value``, ``half``
        (half the width of its 95 % interval), ``change``, ``low`` and ``high`` (against the
        teacher, relative), ``p50_ms``, ``p99_ms`` (batch 1), ``per_s`` (batch 32) and ``gate``.
        """
        import polars as pl

        from slmc.report.view import view_of

        view = view_of(self.result)
        names = ("step", "kind", "parameters", "size_mb", "value", "half")
        rows = [
            {name: getattr(row, name) for name in names}
            | {"metric": view.metric}
            | {name: getattr(row.change, name, None) for name in ("change", "low", "high")}
            | {name: getattr(row, name) for name in ("p50_ms", "p99_ms", "per_s")}
            | {"gate": row.gate or None}
            for row in view.rows
        ]
        floats = ("size_mb", "value", "half", "change", "low", "high", "p50_ms", "p99_ms", "per_s")
        types = {"parameters": pl.Int64, "gate": pl.String} | dict.fromkeys(floats, pl.Float64)
        return pl.DataFrame(rows, schema_overrides=types)

    def load(self, **options: Any) -> Recommender | Engine:
        """Open the last engine of the run, or its last model; options as for :func:`slmc.load`."""
        return load(self.path, **options)

    @property
    def _binding(self) -> list["Verdict"]:
        advisory = self.result.advisory
        return [one for place, one in enumerate(self.result.verdicts) if place not in advisory]

    def __repr__(self) -> str:
        """``<Run runs/movies: pass, 12 steps>``."""
        return f"<Run {self.path}: {self.verdict}, {len(self.result.steps)} steps>"


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, float]):
    """How a model or an engine ranks: metric -> value."""

    report: Artefact

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Value and standard error of each metric, the number of users and the protocol."""
        summary: dict[str, Any] = json.loads(self.report.file("metrics.json").read_bytes())
        return summary

    @property
    def n(self) -> int:
        """Number of users."""
        return int(self.summary["n"])

    @property
    def per_user(self) -> "pl.DataFrame":
        """Rank of the target, cross-entropy and top list of each user."""
        import polars as pl

        return pl.read_parquet(self.report.file("per_user.parquet"))

    def __getitem__(self, metric: str) -> float:
        """The value of a metric."""
        return float(self.summary["metrics"][metric]["value"])

    def __iter__(self) -> Iterator[str]:
        """The names of the metrics."""
        return iter(self.summary["metrics"])

    def __len__(self) -> int:
        """Number of metrics."""
        return len(self.summary["metrics"])

    def __repr__(self) -> str:
        """``<Evaluation n = 943: ndcg@10 0.1082, hr@10 0.2068>``."""
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.items())
        return f"<Evaluation n = {self.n:,}: {values}>"


def run(
    recipe: str | os.PathLike[str],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    out: str | os.PathLike[str] | None = None,
    until: str | None = None,
    smoke: bool = False,
) -> Run:
    """Run a recipe: every stage, the gates, the report. What is in the cache is not run again.

    Args:
        recipe: Name of a packaged recipe, or path of a YAML file.
        overrides: Values to override: ``{"distill.layers": 2}``, or ``["distill.layers=2"]``.
        out: Folder of the run; default: ``runs/NAME``.
        until: Id of the last step to run.
        smoke: Run on a random backbone and few users.

    Returns:
        The run, also if a gate failed: see :attr:`Run.verdict`.

    Raises:
        RecipeError: The recipe cannot run.
        VerdictError: A step's own check failed (parity, ``must_beat``).
        SlmcError: A step cannot run; the same call goes on from there.

    Example::

        run = slmc.run("quickstart", {"distill.layers": 2})
        print(run.verdict, run.steps["distill"].path)
        print(run.table)
    """
    from slmc import report
    from slmc.recipe import load as read

    loaded = read(os.fspath(recipe), sets=_sets(overrides), smoke=smoke)
    folder = None if out is None else Path(out)
    return Run(pipeline.run(loaded, run_dir=folder, until=until, report=report.write))


def evaluate(
    model: Recommender | Engine | Artefact | str | os.PathLike[str],
    data: Artefact | str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure how a model or an engine ranks for the users of a dataset.

    The result is kept in the cache: the same call returns at once.

    Args:
        model: A loaded model or engine, its path, or a run.
        data: The dataset or its path; default: the one that the model was made from, if it is in
            the cache.
        settings: As in ``evaluate`` of a recipe: ``split``, ``metrics``, ``ranking``,
            ``exclude_seen``.

    Raises:
        UsageError: A setting is wrong, or the dataset is not known or does not fit.
        UndecidedError: The dataset has no user to rank for.

    Example::

        ranks = slmc.evaluate("runs/movies", split="valid", metrics=["ndcg@10", "mrr"])
        print(ranks["ndcg@10"], ranks.n)
    """
    from slmc.stages import STAGES, evaluation

    sealed = _artefact(model)
    if sealed.manifest.kind not in ("model", "engine"):
        raise ArtefactError(
            f"{sealed.path} is {artefacts.WITH_ARTICLE[sealed.manifest.kind]}: it does not rank.",
            "Name a model, an engine or a run.",
        )
    config = _evaluate_config(settings)
    stage, typed = evaluation(sealed.manifest.kind, config)
    inputs = {role: sealed for role, kind in STAGES[stage].takes.items() if role != "data"}
    inputs["data"] = _dataset(sealed, data)
    return Evaluation(pipeline.run_stage(stage, typed, inputs))


def _step(step: StepResult) -> Step:
    return Step(step.id, step.stage, step.status, step.seconds, step.artefact)


def _sets(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Overrides as ``KEY=VALUE``; values are written as JSON, which recipes read."""
    if isinstance(overrides, str):
        raise UsageError(
            f"overrides: expected a dict or a list, not {overrides!r}.",
            'Pass {"distill.layers": 2} or ["distill.layers=2"].',
        )
    if not isinstance(overrides, Mapping):
        return [str(one) for one in overrides]
    return [
        f"{key}={value if isinstance(value, str | os.PathLike) else json.dumps(value, default=str)}"
        for key, value in overrides.items()
    ]


def _artefact(model: object) -> Artefact:
    if isinstance(model, Served):
        return model.artefact
    return model if isinstance(model, Artefact) else served_at(model)


def _dataset(sealed: Artefact, data: Artefact | str | os.PathLike[str] | None) -> Artefact:
    if isinstance(data, Artefact):
        return data
    if data is not None:
        return artefacts.load(Path(data), kind="dataset")
    digest = sealed.manifest.parents.get("data")
    cached = pipeline.find(digest) if digest is not None else None
    if cached is None:
        raise UsageError(
            f"the dataset that {sealed.path} was made from is not in the cache.",
            "Pass it as data.",
        )
    return artefacts.load(cached.path)


def _evaluate_config(settings: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    from slmc.evaluation.config import EvaluateConfig

    try:
        return EvaluateConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        raise UsageError(
            f"evaluate: {key}: {first['msg']}.",
            f"The settings are {', '.join(EvaluateConfig.model_fields)}.",
        ) from None
