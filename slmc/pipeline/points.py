"""The results of repeated steps: at each point the mean over the seeds, its spread, intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmc.artefact import Artefact
from slmc.evaluation.bootstrap import Bounds
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.pipeline.choosing import Chooser, mean_of
from slmc.recipe import Recipe
from slmc.recipe.steps import COPY, Step

if TYPE_CHECKING:
    import polars as pl

CONFIDENCE = 0.975
"""One-sided confidence of each bound: together a two-sided 95 % interval."""


@dataclass(frozen=True)
class Against:
    """The change from another step to a repeated step, paired over users and seeds."""

    step: str
    """Label of the other step."""
    value: float
    """Its mean over users and seeds."""
    change: Bounds
    """Absolute."""
    relative: Bounds | None
    """Relative to the other step's mean; None if that is 0, and for a cross-entropy."""


@dataclass(frozen=True)
class PointResult:
    """A repeated step at one point of the sweep, over its seeds."""

    step: str
    """Id of the step with the name of the point, such as ``distill@layers=1``."""
    settings: dict[str, Any]
    """Swept settings that reach the step."""
    seeds: list[int]
    """Seeds of the values; empty if only settings are swept."""
    metric: str
    n: int
    """Users."""
    values: list[float]
    """Mean over the users, for each seed."""
    mean: float
    """Mean over the users and seeds."""
    spread: float | None
    """Standard deviation of ``values``; None for one seed."""
    interval: Bounds
    """The mean with its two-sided 95 % interval, for new users and new seeds."""
    valid: float | None
    """Mean of the recipe's ``select_by`` on validation; None if it was not measured."""
    best: bool
    """Whether it is the best of several points on validation."""
    control: Against | None
    """Against its control, if it has one."""
    baseline: Against | None
    """Against its teacher; a teacher against its SASRec."""


def read_point(data: Mapping[str, Any]) -> PointResult:
    """A result from the JSON data of ``metrics.json``."""

    def against(one: Mapping[str, Any] | None) -> Against | None:
        if one is None:
            return None
        relative = one["relative"] and Bounds(**one["relative"])
        return Against(one["step"], one["value"], Bounds(**one["change"]), relative)

    others = {name: against(data[name]) for name in ("control", "baseline")}
    return PointResult(**{**data, "interval": Bounds(**data["interval"]), **others})


def ranking_metric(recipe: Recipe) -> str | None:
    """The first ranking metric of a recipe, not a cross-entropy; None if it has none."""
    return next((name for name in recipe.evaluate.metrics if name not in LOWER_IS_BETTER), None)


@dataclass(frozen=True)
class Tables:
    """The per-user tables of a run."""

    recipe: Recipe
    artefacts: Mapping[str, Artefact]
    """Step id -> artefact."""
    evaluations: Mapping[str, Artefact]
    """Id of a model or engine step -> report of its evaluation."""
    chooser: Chooser
    """The copies that belong together."""

    def of(self, step: Step) -> "pl.DataFrame | None":
        """The table of a model or engine; that of a SASRec may be in the baselines' report."""
        import polars as pl

        if step.id in self.evaluations:
            return pl.read_parquet(self.evaluations[step.id].file("per_user.parquet"))
        for other in self.recipe.steps if step.stage == "sasrec" else ():
            if other.stage == "baselines" and other.inputs["sasrec"] == step.id:
                report, split = self.artefacts.get(other.id), self.recipe.evaluate.split
                if report is not None:
                    return pl.read_parquet(report.file(f"sasrec/{split}.parquet"))
        return None

    def of_all(self, steps: Sequence[Step]) -> "list[pl.DataFrame]":
        """The tables of some copies; none if one of them was not measured."""
        tables = [table for step in steps if (table := self.of(step)) is not None]
        return tables if len(tables) == len(steps) else []


def points_of(tables: Tables, protocol: Mapping[str, Any]) -> list[PointResult]:
    """Every repeated step that was evaluated with all its seeds, at each point; controls apart.

    Args:
        tables: The per-user tables.
        protocol: Ranking protocol of the run.
    """
    by_label: dict[str, list[Step]] = {}
    for step in tables.recipe.steps:
        if step.copy is not None and step.can_rank and not step.is_control:
            by_label.setdefault(step.label, []).append(step)
    reader = _PointReader(tables, tables.recipe, tables.chooser, protocol)
    return [reader.point(steps) for steps in by_label.values() if tables.of_all(steps)]


@dataclass(frozen=True)
class _PointReader:
    """Reads one row of :func:`points_of`."""

    tables: Tables
    recipe: Recipe
    chooser: Chooser
    protocol: Mapping[str, Any]

    @property
    def metric(self) -> str:
        return ranking_metric(self.recipe) or self.recipe.evaluate.metrics[0]

    def point(self, steps: Sequence[Step]) -> PointResult:
        """The result of all seeds of a point."""
        import numpy as np

        from slmc.evaluation.bootstrap import mean_bounds, mean_over_seeds

        first, copy = steps[0], steps[0].copy
        by_seed = np.stack([self._values(table) for table in self.tables.of_all(steps)])
        options: Any = {"seed": self.recipe.seed, "confidence": CONFIDENCE}
        many = len(steps) > 1
        bounds = mean_over_seeds(by_seed, **options) if many else mean_bounds(by_seed[0], **options)
        values = [float(one) for one in by_seed.mean(axis=1)]
        labels = dict.fromkeys(step.label for step in self.recipe.copies(first.written))
        ranked = len(labels) > 1 and first.written in self.recipe.ranked
        control = next((s.written for s in self.recipe.steps if s.control_of == first.id), None)
        return PointResult(
            step=first.label,
            settings=copy.settings if copy else {},
            seeds=[step.copy.seed for step in steps if step.copy and step.copy.seed is not None],
            metric=self.metric,
            n=by_seed.shape[1],
            values=values,
            mean=float(by_seed.mean()),
            spread=float(np.std(values, ddof=1)) if many else None,
            interval=bounds,
            valid=self._valid(steps),
            best=ranked and self.chooser.best_point(labels) == first.label,
            control=self._against(steps, control),
            baseline=self._against(steps, self._baseline_of(first)),
        )

    def _valid(self, steps: Sequence[Step]) -> float | None:
        reports = [self.chooser.reports.get(step.id) for step in steps]
        means = [mean_of(report, self.recipe.select_by) for report in reports if report is not None]
        return sum(means) / len(means) if len(means) == len(reports) else None

    def _baseline_of(self, step: Step) -> str | None:
        """The step with which a step is compared: SASRec for a teacher, else the teacher."""
        if step.stage == "sasrec":
            return None
        if step.stage == "teach":
            return self.recipe.baseline_sasrec
        if (teacher := step.inputs.get("teacher")) is not None:
            return teacher.partition(COPY)[0]
        teachers = [one for one in self.recipe.steps if one.stage == "teach" and not one.is_control]
        return teachers[-1].written if teachers else None

    def _against(self, steps: Sequence[Step], reference: str | None) -> Against | None:
        from slmc.evaluation.comparison import change_over_seeds

        others = self.chooser.counterparts(steps, reference) if reference is not None else []
        ours, theirs = self.tables.of_all(steps), self.tables.of_all(others)
        if not theirs:
            return None
        change = change_over_seeds(
            ours, theirs, self.metric, self.protocol, seed=self.recipe.seed, confidence=CONFIDENCE
        )
        means = [float(self._values(table).mean()) for table in theirs]
        lower = self.metric in LOWER_IS_BETTER
        return Against(
            step=others[0].id if len(others) == 1 else others[0].label,
            value=sum(means) / len(means),
            change=change.absolute,
            relative=None if lower else change.relative,
        )

    def _values(self, table: "pl.DataFrame") -> Any:
        from slmc.evaluation.results import values

        return values(table, self.metric, self.protocol)
