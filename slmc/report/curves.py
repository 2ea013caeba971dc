"""Curves of losses and of validation metrics, from a run's ``log.jsonl``."""

import json
from dataclasses import dataclass
from pathlib import Path

POINTS = 300
"""Largest number of points of a curve; longer curves are averaged in bins."""
LEFT_OUT = frozenset({"grad_norm"})


@dataclass(frozen=True)
class Curves:
    """The losses and the validation metrics of a task by step."""

    task: str
    """Id of the step, or name of the task in a log without steps."""
    terms: dict[str, list[tuple[float, float]]]
    """Term -> (step, value), binned."""


def curves_of(log: Path) -> list[Curves]:
    """The curves of every step that logged losses; none if there is no log.

    If a step ran twice, before and after a crash, the last values count.
    """
    by_task: dict[str, dict[str, dict[int, float]]] = {}
    if log.is_file():
        with log.open(encoding="utf-8") as stream:
            for line in stream:
                _add(line, by_task)
    return [
        Curves(task, {term: _binned(points) for term, points in terms.items()})
        for task, terms in by_task.items()
    ]


def _add(line: str, by_task: dict[str, dict[str, dict[int, float]]]) -> None:
    if '"terms"' not in line:
        return
    try:
        record = json.loads(line)
        progress = record["progress"]
        task = record.get("step", progress["task"])
        step, terms = int(progress["done"]), progress["terms"]
    except (ValueError, KeyError, TypeError):
        return  # an incomplete line of a killed process
    for term, value in terms.items():
        if term not in LEFT_OUT and isinstance(value, (int, float)):
            by_task.setdefault(task, {}).setdefault(term, {})[step] = float(value)


def _binned(points: dict[int, float]) -> list[tuple[float, float]]:
    ordered = sorted(points.items())
    width = -(-len(ordered) // POINTS)
    bins = [ordered[i : i + width] for i in range(0, len(ordered), width)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]
