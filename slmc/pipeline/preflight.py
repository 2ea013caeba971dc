"""Checks before the first step, so that a run that cannot work fails at once."""

import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slmc import cache
from slmc.compress.config import PruneConfig
from slmc.config import OnDevice, StageConfig
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.errors import MissingError, UsageError
from slmc.export.config import ExportConfig
from slmc.recipe import Recipe
from slmc.recipe.steps import Step
from slmc.stages import STAGES
from slmc.training.config import SasrecConfig

MB = 10**6
NEEDED_MB = {"llm": 3000, "small": 100}
"""Free disk space that a run needs. With an LLM: its converted weights, and the teacher states for
the students (0.9 GB for MovieLens-100K). Without one there are only small models."""
COPY_MB = {"teach": 1000, "model": 60, "engine": 60}
"""Disk space of each further copy of a step with an LLM: of a teacher with its states, and of other
models and engines, by kind. Without an LLM a copy needs :data:`SMALL_COPY_MB`."""
SMALL_COPY_MB = 2


def check_extras(steps: Sequence[Step]) -> None:
    """Check that every library of every step is installed, without importing it.

    Raises:
        MissingError: Libraries are missing; the error lists all, with the extras to install.
    """
    missing: dict[str, str] = {}
    affected: list[str] = []
    for step in steps:
        lacks = {
            module: extra
            for module, extra in (STAGES[step.stage].extras | step.config.extras()).items()
            if find_spec(module) is None
        }
        missing |= lacks
        affected += [step.id] * bool(lacks)
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise MissingError(
            f"{', '.join(affected)}: {', '.join(sorted(missing))} not installed.",
            f"Install with `pip install 'slmc[{extras}]'`.",
        )


def check_devices(steps: Sequence[Step]) -> None:
    """Check that every GPU that a step names exists.

    Raises:
        MissingError: A GPU does not exist.
    """
    devices = {
        step.config.device
        for step in steps
        if isinstance(step.config, OnDevice) and step.config.device.startswith("cuda")
    }
    for device in sorted(devices):
        # Imported here: "auto" and "cpu" need no check, and so no torch.
        from slmc.model.device import choose

        choose(device, "fp32")


def check_engines(steps: Sequence[Step]) -> None:
    """Check what exports need in addition to libraries: a GPU, or TensorRT's builder.

    Raises:
        MissingError: The machine lacks it.
    """
    for step in steps:
        config = step.config
        if not isinstance(config, ExportConfig):
            continue
        # Imported here: only exports need these modules.
        from slmc.export.runtime.engine import available_providers
        from slmc.export.tensorrt.flavours import FLAVOURS, module_for_building

        try:
            if config.precision is not None:
                available_providers(config.precision)
            if "tensorrt" in config.formats:
                module_for_building(FLAVOURS[config.tensorrt.flavour])
        except MissingError as error:
            raise MissingError(f"{step.id}: {error}", error.remedy) from None


def check_backbones(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Check every local backbone and text encoder: that slmc supports it, and can prune it.

    Hub ids and GGUF files are checked by the stages, since they have to be downloaded or converted.

    Args:
        recipe: The recipe.
        steps: Those of its steps that will run.

    Raises:
        UsageError: A backbone is not supported.
    """
    known = {step.id: step for step in recipe.steps}
    # The copies of a choice differ in settings that are checked for each of them.
    known |= {name: known[choice.candidates[0]] for name, choice in recipe.choices.items()}
    for step in steps:
        made_from = _made_from(step, known) if isinstance(step.config, PruneConfig) else step
        try:
            check_encoder(step.config)
            if made_from is None or not isinstance(made_from.config, (TeachConfig, DistillConfig)):
                continue
            decoder = check_backbone(made_from.config, recipe.data.history)
            if decoder is not None and isinstance(step.config, PruneConfig):
                _check_prunable(step.config, decoder)
        except UsageError as error:
            what = str(error).removeprefix(f"{step.id}: ")
            raise UsageError(f"{step.id}: {what}", error.remedy) from None


def check_backbone(config: TeachConfig | DistillConfig, history: int | None) -> Any:
    """Check that slmc supports the backbone of a config, if it is a local folder or random.

    Args:
        config: Names the backbone.
        history: Largest number of items of a history.

    Returns:
        Its decoder without weights; ``None`` if it is not local.

    Raises:
        UsageError: The backbone is not supported.
    """
    name = config.backbone
    if name is None or not (name.startswith("random://") or Path(name).expanduser().is_dir()):
        return None
    # Imported here, since they import torch.
    from slmc.distill import existing
    from slmc.model import backbone

    if existing.is_recommender(Path(name)):
        if isinstance(config, TeachConfig):
            existing.refuse_texts(config)
        return existing.check(Path(name), history)
    layers = config.layers if isinstance(config.layers, int) else None
    return backbone.check(name, revision=config.revision, layers=layers, history=history)


def check_encoder(config: StageConfig) -> None:
    """Check that the text encoder of a config, if it is a local folder, can encode texts.

    Raises:
        UsageError: It has no tokenizer, or fewer layers than the config names.
    """
    if isinstance(config, TeachConfig) and config.items_from_texts:
        name = config.text_encoder[0]
    elif isinstance(config, SasrecConfig) and config.encoder is not None:
        name = config.encoder
    else:
        return
    # Imported here, since it imports torch.
    from slmc.model import text_encoder

    layer = config.encoder_layer
    text_encoder.check(name, None if layer == "auto" else layer)


def _made_from(step: Step, known: Mapping[str, Step]) -> Step | None:
    """The step that read the backbone of a step's model."""
    config, inputs = step.config, step.inputs
    if isinstance(config, TeachConfig):
        return step
    if isinstance(config, DistillConfig) and "student" not in inputs and config.backbone:
        return step
    before = inputs.get("student", inputs.get("model", inputs.get("teacher")))
    return _made_from(known[before], known) if before is not None else None


def _check_prunable(config: PruneConfig, decoder: Any) -> None:
    from slmc.compress.prune.width import FIND, check_cuttable

    for field in FIND:
        if getattr(config, field) is not None:
            check_cuttable(decoder, field)


def check_disk(steps: Sequence[Step]) -> None:
    """Check that the disk of the cache has enough space for the artefacts of the steps.

    Raises:
        MissingError: It has too little.
    """
    needed = needed_mb(steps)
    free = shutil.disk_usage(_existing(cache.root())).free // MB
    if free < needed:
        raise MissingError(
            f"the disk of the cache {cache.root()} has {free} MB free; the run needs {needed} MB.",
            "Free some space, or set SLMC_CACHE to a folder on another disk.",
        )


def needed_mb(steps: Sequence[Step]) -> int:
    """Free disk space that the steps need, in MB; each copy by ``seeds`` and ``sweep`` counts."""
    llm = any(
        isinstance(step.config, TeachConfig) and not step.config.backbone.startswith("random://")
        for step in steps
    )
    needed = NEEDED_MB["llm" if llm else "small"]
    first: set[str] = set()
    for step in steps:
        if step.written in first:
            size = COPY_MB.get(step.stage, COPY_MB.get(step.gives, 0))
            needed += size if llm else min(size, SMALL_COPY_MB)
        first.add(step.written)
    return needed


def _existing(path: Path) -> Path:
    """``path``, or the nearest parent that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
