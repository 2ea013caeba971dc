"""Check that the settings of a step work with the steps before it.

The check follows a model to the step that makes it. What depends on the model's files, such as the
number of layers of an LLM, is checked by the stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.config import StageConfig
from slmc.data.config import PrepareConfig
from slmc.distill.config import OF_SCORES, OF_STATES, DistillConfig, TeachConfig
from slmc.distill.depth_config import DepthConfig
from slmc.export.config import ExportConfig
from slmc.export.constraints import Refusal, Source, refusals
from slmc.export.items.item_file import needs_texts
from slmc.recipe.faults import Faults
from slmc.recipe.item_tables import table_fault
from slmc.recipe.sets import bodies
from slmc.recipe.steps import Step, is_sasrec
from slmc.recipe.text import Document
from slmc.training.config import SasrecConfig

EVERY = "*"
"""Pattern of ``assign`` that matches every layer of every model."""
Conflict = tuple[str, str]
"""Key of a setting that cannot work, and why."""
AROUND = frozenset(["input_proj", "output_proj"])
"""Linear layers outside of the decoder."""


def check_compatibility(document: Document, faults: Faults, steps: Sequence[Step]) -> None:
    """Add a fault for every setting that cannot work with the earlier steps.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        steps: The recipe's steps, all without faults.
    """
    known = {step.id: step for step in steps}
    for step_id, (path, _) in bodies(document).items():
        step = known[step_id]
        for key, what in _conflicts(step, known):
            at = (*path, *key.split("."))
            faults.add(document.place(at), f"{step_id}.{key}", what)


def _conflicts(step: Step, known: Mapping[str, Step]) -> list[Conflict]:
    """The settings of a step that cannot work: key and message of each."""
    config, inputs = step.config, step.inputs
    conflicts: list[Conflict | None] = [*_of_sasrec(step, known)]
    if isinstance(config, DistillConfig):
        conflicts += _of_teachers(step, known)
        conflicts += _of_layers(config, inputs, known)
    elif isinstance(config, DepthConfig):
        conflicts.append(_not_shallower(config, inputs["teacher"], known))
    elif isinstance(config, SasrecConfig | TeachConfig):
        conflicts.append(_without_texts(config, known[inputs["data"]].config))
    elif isinstance(config, PruneConfig):
        conflicts.append(_too_deep("layers", config.layers, inputs["model"], known))
        conflicts.append(_without_head(config, inputs["model"], known))
    elif isinstance(config, ExportConfig):
        of = inputs["model"]
        conflicts.append(_of_new_items(config, of, known))
        for one in impossible(config, sources(of, known), repr(of)):
            conflicts.append((one.key, f"{one.value}: {one.why}. {one.remedy}"))
    return [one for one in conflicts if one is not None]


def _of_new_items(config: ExportConfig, of: str, known: Mapping[str, Step]) -> Conflict | None:
    """New items that only have texts, for a model whose item table does not come from texts."""
    if config.items is None or config.cooccurrence is not None:
        return None
    why = table_fault(of, known)
    if why is None or not needs_texts(config.items):
        return None
    return "items", f"{config.items}: {why}"


def _of_layers(
    config: DistillConfig, inputs: Mapping[str, str], known: Mapping[str, Step]
) -> list[Conflict | None]:
    """Layers of a student that its inputs do not have, and a depth step that does not fit."""
    if "student" in inputs:
        # An existing student keeps its layers, so ``layers`` counts only without one.
        what = "a student that is the model of another step keeps its layers. Leave one of them out"
        chosen = {"layers": not isinstance(config.layers, int), "select": config.select is not None}
        wrong = [(key, f"{what}.") for key, is_set in chosen.items() if is_set]
        return [*wrong, _too_deep("blocks", config.blocks, inputs["student"], known)]
    number = config.layers if isinstance(config.layers, int) else None
    return [
        _too_deep("layers", number, inputs["teacher"], known),
        _of_depth(config, inputs, known),
    ]


def _of_depth(
    config: DistillConfig, inputs: Mapping[str, str], known: Mapping[str, Step]
) -> Conflict | None:
    """A depth step that is of another teacher, or is not used."""
    if "depth" not in inputs:
        return None
    name, teacher = inputs["depth"], inputs["teacher"]
    from_depth = not isinstance(config.layers, int)
    key = "layers" if from_depth else "depth"
    other = known[name].inputs["teacher"]
    if other != teacher:
        return key, f"{name!r} measures {other!r}, but the teacher is {teacher!r}."
    if not from_depth and config.select != "influence":
        return key, "is not used. Set layers: {from: depth} or select: influence, or leave it out."
    return None


def _not_shallower(config: DepthConfig, teacher: str, known: Mapping[str, Step]) -> Conflict | None:
    """Depths that are not below that of the model."""
    depth, most = depth_of(teacher, known), max(config.depths or [0])
    if depth is None or most < depth:
        return None
    return "depths", f"{most} is not less than the {depth} layers of {teacher!r}"


def _without_texts(config: StageConfig, data: StageConfig) -> Conflict | None:
    """Item embeddings from texts that the dataset does not have."""
    kind = getattr(config, "item_embeddings", None)
    if kind not in ("text", "hybrid") or (isinstance(data, PrepareConfig) and data.items):
        return None
    return "item_embeddings", f"{kind}: the data has no texts of items. Set data.items."


def _of_sasrec(step: Step, known: Mapping[str, Step]) -> list[Conflict]:
    """Inputs that are a SASRec, in a stage that needs a recommender on an LLM."""
    if not isinstance(step.config, (DepthConfig, PruneConfig, QuantizeConfig)):
        return []
    why = f"is a SASRec, but {step.stage} needs a recommender on an LLM. Export it directly."
    return [
        (role, f"{taken!r} {why}") for role, taken in step.inputs.items() if is_sasrec(taken, known)
    ]


def _of_teachers(step: Step, known: Mapping[str, Step]) -> list[Conflict]:
    """Loss terms of a distillation that its teachers or its student do not support."""
    config, inputs = step.config, step.inputs
    assert isinstance(config, DistillConfig)
    terms = config.losses.weights()
    conflicts = []
    if "teacher2" in inputs and not OF_SCORES & set(terms) and not step.is_control:
        what = "several teachers are averaged by their scores. Set losses.logits or ranking, or "
        what += "name one."
        conflicts.append(("teachers", what))
    student = inputs.get("student")
    to_sasrec = student is not None and is_sasrec(student, known)
    for term in terms:
        if term in OF_STATES and is_sasrec(inputs["teacher"], known):
            what = f"the teacher {inputs['teacher']!r} is a SASRec, without blocks of an LLM"
            conflicts.append((f"losses.{term}", f"{what}. Use losses.logits or ranking."))
        elif term in (*OF_STATES, "supervise") and to_sasrec:
            what = f"the student {student!r} is a SASRec, without blocks of an LLM"
            conflicts.append((f"losses.{term}", f"{what}. Use losses.logits or ranking."))
    if student is None and is_sasrec(inputs["teacher"], known) and config.backbone is None:
        what = f"the teacher {inputs['teacher']!r} has no LLM for the student. Name one."
        conflicts.append(("backbone", what))
    if to_sasrec and config.item_dim is not None:
        what = f"the student {student!r} is a SASRec; its layers have that width"
        conflicts.append(("item_dim", f"{what}. Leave it out."))
    frozen = not to_sasrec and config.item_dim is None
    if "items" in terms and frozen and _freezes_items(inputs["teacher"], known):
        what = f"the item table is frozen, as that of {inputs['teacher']!r}. Set item_dim."
        conflicts.append(("losses.items", what))
    return conflicts


def _freezes_items(teacher: str, known: Mapping[str, Step]) -> bool:
    """Whether the item table of a student of ``teacher`` is frozen, unless it sets item_dim."""
    step = known[teacher]
    if isinstance(step.config, DistillConfig):
        return _freezes_items(step.inputs["teacher"], known)
    return step.config.freeze_items if isinstance(step.config, TeachConfig) else True


def _without_head(config: PruneConfig, model: str, known: Mapping[str, Step]) -> Conflict | None:
    """An early exit after a block that has no head."""
    block, made_by = config.exit_block, known[model].config
    if block is None:
        return None
    if not isinstance(made_by, DistillConfig) or not made_by.keep_heads:
        what = f"{model!r} has no heads of its blocks. Distil it with keep_heads: true."
        return "exit_block", what
    if block < made_by.blocks:
        return None
    what = f"{block} is more than the {made_by.blocks - 1} blocks of {model!r} that have a head"
    return "exit_block", what


def _too_deep(
    field: str, number: int | None, other: str, known: Mapping[str, Step]
) -> Conflict | None:
    depth = depth_of(other, known)
    if number is None or depth is None or number <= depth:
        return None
    of = depth if field == "layers" else f"{depth} layers"
    return field, f"{number} {field} are more than the {of} of {other!r}"


def depth_of(name: str, known: Mapping[str, Step]) -> int | None:
    """Decoder layers of a step's model; None if the recipe does not say."""
    step = known[name]
    if isinstance(step.config, TeachConfig):
        return step.config.layers
    if isinstance(step.config, DistillConfig) and "student" not in step.inputs:
        return step.config.layers if isinstance(step.config.layers, int) else None
    if isinstance(step.config, PruneConfig) and step.config.layers is not None:
        return step.config.layers
    if isinstance(step.config, PruneConfig) and step.config.exit_block is not None:
        return _depth_of_exit(step.config.exit_block, step.inputs["model"], known)
    before = step.inputs.get("student", step.inputs.get("model"))
    return depth_of(before, known) if before is not None else None


def _depth_of_exit(block: int, model: str, known: Mapping[str, Step]) -> int | None:
    """Layers up to the end of a block; blocks differ by at most one layer."""
    config, depth = known[model].config, depth_of(model, known)
    if depth is None or not isinstance(config, DistillConfig):
        return None
    return block * depth // config.blocks


def impossible(config: ExportConfig, source: Sequence[Source], name: str) -> list[Refusal]:
    """Settings of an export that cannot work with any of the forms that its model may have.

    Args:
        config: Settings of the export.
        source: Forms that the model may have, the most likely first.
        name: Name of the model in messages.
    """
    first, *others = (refusals(config, one, name) for one in source)
    keys = [{refusal.key for refusal in other} for other in others]
    return [one for one in first if all(one.key in refused for refused in keys)]


def sources(name: str, known: Mapping[str, Step]) -> list[Source]:
    """Forms that a step's model may have, the most likely first."""
    config = known[name].config
    data = known["prepare"].config
    history = data.history if isinstance(data, PrepareConfig) else None
    if is_sasrec(name, known):
        return [Source(on_llm=False, history=history)]
    if not isinstance(config, QuantizeConfig):
        return [Source(history=history)]  # training and pruning keep float weights
    table = {"int4": 4, "int8": 8}.get(config.item_table or "")
    return [replace(one, table_bits=table, history=history) for one in _in_codes(config)]


def _in_codes(config: QuantizeConfig) -> list[Source]:
    """Every set of bit widths that a quantized model may have; it depends on the model's layers."""
    widths: set[int | str] = {config.bits}
    for pattern, width in config.assign.items():
        widths = {width} if pattern == EVERY else widths | {width}
    bits = sorted(width for width in widths if isinstance(width, int))
    forms = [
        Source(frozenset(some), frozenset([config.group_size]), not config.symmetric and 4 in some)
        for size in range(len(bits), 0, -1)
        for some in combinations(bits, size)
    ]
    # If the item table is quantized, all layers may stay in floats.
    all_skipped = "skip" in widths or not set(config.ignore) <= AROUND
    if not forms or (all_skipped and config.item_table is not None):
        forms.append(Source())
    return forms
