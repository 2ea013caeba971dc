"""Whether a teacher is worth distilling: compared with the baselines, on validation users.

The comparison is part of the teacher's artefact. What follows from it is decided when the step
is done, be it run or found in the cache: a refused teacher is kept, and is not trained again
only because the recipe says ``otherwise: warn`` then.
"""

import logging
from typing import TYPE_CHECKING, Any

from slmc.artefact import Artefact
from slmc.distill.config import MustBeat, TeachConfig
from slmc.errors import VerdictError

if TYPE_CHECKING:
    from slmc.data.dataset import Dataset
    from slmc.evaluation.evaluate import Scorer

log = logging.getLogger("slmc.teach")


def compare(
    asked: MustBeat, teacher: "Scorer", baselines: Artefact, data: "Dataset", seed: int
) -> dict[str, dict[str, Any]]:
    """Compare a teacher with every baseline that is asked for, paired over validation users.

    Whatever its own settings are, it is ranked as the baselines were. Several comparisons are
    corrected together (:func:`slmc.evaluation.multiple.compare_all`).

    Args:
        asked: Baselines, metric and confidence.
        teacher: Scores histories.
        baselines: Report of the baselines.
        data: The dataset.
        seed: Of the bootstrap.

    Returns:
        Name of a baseline -> outcome, values, bounds and the sentence that says them; JSON-able.
    """
    import polars as pl

    from slmc.config import Protocol
    from slmc.evaluation.baselines import compare as compared
    from slmc.evaluation.config import EvaluateConfig
    from slmc.evaluation.evaluate import best_temperature, rank
    from slmc.evaluation.measured import settled

    alike = {name: baselines.manifest.config[name] for name in ("seed", *Protocol.model_fields)}
    config = settled(EvaluateConfig(**alike, split="valid"), data)
    per_user = rank(
        teacher,
        data.targets("valid"),
        data.counts,
        config,
        "must_beat",
        top=0,
        temperature=best_temperature(teacher, data, config)
        if asked.metric == "ce_calibrated"
        else None,
    )
    tables: dict[str, pl.DataFrame] = {
        name: pl.read_parquet(baselines.file(f"{name}/valid.parquet")) for name in asked.models
    }
    found = compared(
        per_user, tables, asked.metric, config=config, confidence=asked.confidence, seed=seed
    )
    for name, one in found.items():
        log.info("must_beat: the teacher is %s than %s: %s", one.outcome, name, one.sentence)
    return {name: one.as_dict() for name, one in found.items()}


def check(config: TeachConfig, teacher: Artefact) -> None:
    """Decide what follows from a comparison that says worse.

    Args:
        config: What its recipe asks for now.
        teacher: Made with these settings, ``otherwise`` apart.

    Raises:
        VerdictError: The teacher is significantly worse than a baseline, and the config says
            ``otherwise: stop``.
    """
    if config.must_beat is None:
        return
    found = teacher.manifest.metrics["must_beat"]
    worse = [
        f"{name}: {one['sentence']}" for name, one in found.items() if one["outcome"] == "worse"
    ]
    if not worse:
        return
    what = f"the teacher is significantly worse than {'; '.join(worse)}"
    if config.must_beat.otherwise == "stop":
        raise VerdictError(
            f"teach: {what}.",
            "Train it longer or at another rate, give it more layers, or set "
            "must_beat.otherwise: warn, which takes this teacher from the cache.",
        )
    log.warning("%s", what)
