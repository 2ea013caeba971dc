"""A student and its control over several seeds: ``python benchmarks/seeds.py RECIPE``.

``--seeds 17,18,19`` runs the recipe once for each, with ``distill.seed`` set to it, until the
control is measured; teacher and baselines come from the cache after the first. ``--set KEY=VALUE``
changes the recipe as in ``slmc run``, ``--step ID`` names another step that has a control, and
``--json FILE`` writes the numbers. Runs lie in ``runs/NAME-ID-SEED``.

It prints each seed's values, and changes with 95 % intervals, two-sided: of a seed over its
users (``slmc.evaluation.bootstrap.paired_bootstrap``), in the last line of the mean over seeds,
where other seeds could have been drawn as well (``paired_over_seeds``).
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.errors import SlmcError
from slmc.evaluation.bootstrap import Bounds, Interval, paired_over_seeds
from slmc.evaluation.comparison import paired_change
from slmc.evaluation.results import Evaluation, check_same_users, protocol_text, values
from slmc.pipeline.judging import measured_as
from slmc.pipeline.runner import run
from slmc.recipe import load
from slmc.report.numbers import change, value

CONFIDENCE = 0.975
"""One-sided, of each bound: together a two-sided interval of 95 %."""
SEED = 17
"""Of the resampling."""


@dataclass(frozen=True)
class Trained:
    """What one seed gave: id of a step -> its evaluation."""

    seed: int
    measured: dict[str, Evaluation]


def train(name: str, step_id: str, seed: int, sets: list[str]) -> Trained:
    """Run the recipe until the step's control is measured."""
    seeded = [*sets, f"{step_id}.control=true", f"{step_id}.seed={seed}"]
    recipe = load(name, sets=seeded)
    step = recipe.step(step_id)
    control = next(one.id for one in recipe.steps if one.control_of == step_id)
    result = run(recipe, run_dir=Path("runs") / f"{recipe.name}-{step_id}-{seed}", until=control)
    artefacts = result.artefacts()
    ids = [step_id, control, *([step.inputs["teacher"]] if "teacher" in step.inputs else [])]
    return Trained(
        seed, {one: measured_as(one, artefacts[one], result.evaluations[one]) for one in ids}
    )


def rows_of(trained: list[Trained], metric: str) -> list[dict[str, Any]]:
    """A row for each seed, and one of the mean over seeds: values, and changes to the others."""
    student, *others = trained[0].measured
    for one in trained:
        for measured in one.measured.values():
            check_same_users(measured, trained[0].measured[student])

    def numbers(step_id: str) -> NDArray[np.float64]:
        tables = [one.measured[step_id] for one in trained]
        return np.stack([values(m.per_user, metric, m.protocol) for m in tables])

    def row(name: str, means: dict[str, float], changes: dict[str, Interval]) -> dict[str, Any]:
        return {
            "seed": name,
            "values": means,
            "against": {k: asdict(v) for k, v in changes.items()},
        }

    arrays = {step_id: numbers(step_id) for step_id in (student, *others)}
    rows = []
    for i, one in enumerate(trained):
        ours = one.measured[student]
        changes = {
            other: paired_change(
                ours.per_user,
                one.measured[other].per_user,
                metric,
                ours.protocol,
                seed=SEED,
                confidence=CONFIDENCE,
            )
            for other in others
        }
        means = {step_id: float(array[i].mean()) for step_id, array in arrays.items()}
        rows.append(row(str(one.seed), means, changes))
    changes = {
        other: paired_over_seeds(arrays[student], arrays[other], seed=SEED, confidence=CONFIDENCE)
        for other in others
    }
    means = {step_id: float(array.mean()) for step_id, array in arrays.items()}
    return [*rows, row("mean", means, changes)]


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table; changes are relative."""
    steps, others = list(rows[0]["values"]), list(rows[0]["against"])
    head = ["seed", *steps, *(f"{steps[0]} against {other}" for other in others)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        relative = [row["against"][other]["relative"] for other in others]
        lines.append(
            [
                row["seed"],
                *(value(row["values"][step]) for step in steps),
                *(change(Bounds(**one) if one else None) for one in relative),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Train with each seed, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a packaged recipe or a YAML file")
    parser.add_argument("--seeds", default="17,18,19", help="at least two, with commas")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--step", default="distill", metavar="ID")
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if len(set(seeds)) < 2:
        parser.error("--seeds: name at least two seeds")
    try:
        trained = [train(options.recipe, options.step, seed, options.set) for seed in seeds]
    except SlmcError as error:
        parser.exit(error.exit_code, f"error: {error.what}\n  {error.remedy}\n")
    rows = rows_of(trained, options.metric)
    first = trained[0].measured[options.step]
    n, protocol = first.per_user.height, protocol_text(first.protocol)
    print(f"{options.metric}, {protocol}, n = {n:,}; 95 % intervals, two-sided\n\n{table_of(rows)}")
    if options.json:
        report = {"metric": options.metric, "protocol": first.protocol, "n": n, "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
