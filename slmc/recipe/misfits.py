"""Settings that are sound alone and cannot work with the steps before them.

A model is followed to the step that makes it. What only the model itself can tell, such as the
layers of an LLM, is left to the stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.data.config import PrepareConfig
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.export.config import ExportConfig
from slmc.export.constraints import Refusal, Source, refusals
from slmc.recipe.faults import Faults
from slmc.recipe.sets import bodies
from slmc.recipe.steps import Step
from slmc.recipe.text import Document

EVERY = "*"
"""Pattern of ``assign`` that fits every layer, whatever the model."""
AROUND = frozenset(["input_proj", "output_proj"])
"""Linear layers that are no part of the decoder: it has others."""


def refuse_misfits(document: Document, faults: Faults, steps: Sequence[Step]) -> None:
    """Note what cannot work of steps that were read without a fault.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        steps: The recipe's steps, with those that they take from.
    """
    known = {step.id: step for step in steps}
    for step_id, (path, _) in bodies(document).items():
        step = known[step_id]
        for key, what in _misfits(step, known):
            at = (*path, *key.split("."))
            faults.add(document.place(at), f"{step_id}.{key}", what)


def _misfits(step: Step, known: Mapping[str, Step]) -> list[tuple[str, str]]:
    """Keys of a step's settings, and what is wrong with each."""
    config, inputs = step.config, step.inputs
    found: list[tuple[str, str] | None] = [*_of_sasrec(step, known)]
    if isinstance(config, DistillConfig) and "student" not in inputs:
        # A student that is given has the layers that it has, whatever the config says.
        found.append(_too_deep("layers", config.layers, inputs["teacher"], known))
    elif isinstance(config, DistillConfig):
        found.append(_too_deep("blocks", config.blocks, inputs["student"], known))
    elif isinstance(config, PruneConfig):
        found.append(_too_deep("layers", config.layers, inputs["model"], known))
    elif isinstance(config, ExportConfig):
        of = inputs["model"]
        for one in impossible(config, sources(of, known), repr(of)):
            found.append((one.key, f"{one.value}: {one.why}. {one.remedy}"))
    return [one for one in found if one is not None]


def _of_sasrec(step: Step, known: Mapping[str, Step]) -> list[tuple[str, str]]:
    """Roles in which a stage that is for LLMs is given a SASRec."""
    if not isinstance(step.config, (DistillConfig, PruneConfig, QuantizeConfig)):
        return []
    why = f"is a SASRec, and {step.stage} takes a recommender on an LLM. Export it as it is."
    return [
        (role, f"{taken!r} {why}")
        for role, taken in step.inputs.items()
        if known[taken].stage == "sasrec"
    ]


def _too_deep(
    field: str, asked: int | None, other: str, known: Mapping[str, Step]
) -> tuple[str, str] | None:
    depth = depth_of(other, known)
    if asked is None or depth is None or asked <= depth:
        return None
    of = depth if field == "layers" else f"{depth} layers"
    return field, f"{asked} {field} are more than the {of} of {other!r}"


def depth_of(name: str, known: Mapping[str, Step]) -> int | None:
    """Decoder layers of a step's model, where the recipe tells them."""
    step = known[name]
    if isinstance(step.config, TeachConfig):
        return step.config.layers
    if isinstance(step.config, DistillConfig) and "student" not in step.inputs:
        return step.config.layers
    if isinstance(step.config, PruneConfig) and step.config.layers is not None:
        return step.config.layers
    before = step.inputs.get("student", step.inputs.get("model"))
    return depth_of(before, known) if before is not None else None


def impossible(config: ExportConfig, source: Sequence[Source], name: str) -> list[Refusal]:
    """What speaks against an export whatever the model turns out to be.

    Args:
        config: Of the export.
        source: Forms that the model may have, the likeliest first.
        name: What messages call the model.
    """
    first, *others = (refusals(config, one, name) for one in source)
    keys = [{other.key for other in found} for found in others]
    return [one for one in first if all(one.key in found for found in keys)]


def sources(name: str, known: Mapping[str, Step]) -> list[Source]:
    """Forms that a step's model may have, the likeliest first."""
    config = known[name].config
    data = known["prepare"].config
    history = data.history if isinstance(data, PrepareConfig) else None
    if known[name].stage == "sasrec":
        return [Source(on_llm=False, history=history)]
    if not isinstance(config, QuantizeConfig):
        return [Source(history=history)]  # training and pruning leave floats
    table = {"int4": 4, "int8": 8}.get(config.item_table or "")
    return [replace(one, table_bits=table, history=history) for one in _in_codes(config)]


def _in_codes(config: QuantizeConfig) -> list[Source]:
    """Every set of widths that a quantized model may have: only it tells which layers it has."""
    widths: set[int | str] = {config.bits}
    for pattern, width in config.assign.items():
        widths = {width} if pattern == EVERY else widths | {width}
    bits = sorted(width for width in widths if isinstance(width, int))
    found = [
        Source(frozenset(some), frozenset([config.group_size]), not config.symmetric and 4 in some)
        for size in range(len(bits), 0, -1)
        for some in combinations(bits, size)
    ]
    # With an item table of codes no layer needs any.
    all_skipped = "skip" in widths or not set(config.ignore) <= AROUND
    if not found or (all_skipped and config.item_table is not None):
        found.append(Source())
    return found
