"""The key ``seeds``, of a recipe or of a step: with which seeds the training is repeated."""

from typing import Annotated

from pydantic import AfterValidator, Field

from slmc.config import StageConfig


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is listed twice")
    return seeds


Count = Annotated[int, Field(ge=2)]
Listed = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(min_length=2),
    AfterValidator(_different),
]
Seeds = Count | Listed
"""A number of seeds, counted from ``seed``, or the seeds themselves."""


class Repeated(StageConfig):
    """The key ``seeds`` of a step."""

    seeds: Seeds
    """Repeat this step, and the models that later steps make from it, with several seeds: their
    number, counted from the step's seed, or a list. The steps before it are shared."""


def seeds_from(value: int | tuple[int, ...], first: int) -> tuple[int, ...]:
    """The seeds of a list, or of a count, which starts at ``first``."""
    return tuple(range(first, first + value)) if isinstance(value, int) else tuple(value)
