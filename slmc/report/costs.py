"""What a million requests cost, from the measured throughput and the price of an hour."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from slmc.export.config import BenchConfig
from slmc.report import numbers

if TYPE_CHECKING:
    from slmc.recipe.steps import Step
    from slmc.report.tables import Timing


def price_of(step: "Step") -> float | None:
    """The price of an hour in the settings of a bench step; None if it has none.

    It is read from the recipe, not from the report of the step: the report may be cached from a
    run with another price.
    """
    return step.config.price_per_hour if isinstance(step.config, BenchConfig) else None


def costs(benches: "Sequence[Step]", times: "Mapping[str, list[Timing]]") -> list[str]:
    """A sentence for each bench step with a price: the cost at the highest throughput of each."""
    return [
        f"{step.id}: at {numbers.cost(price)} an hour, a million requests of one history cost "
        f"{_listed(times[step.id])}"
        for step in benches
        if (price := price_of(step)) is not None
    ]


def _listed(timings: "Sequence[Timing]") -> str:
    fastest: dict[str, Timing] = {}
    for one in timings:
        if one.who not in fastest or one.per_s > fastest[one.who].per_s:
            fastest[one.who] = one
    return ", ".join(
        f"{numbers.cost(one.per_million)} with {one.who} (batch {one.batch})"
        for one in fastest.values()
    )
