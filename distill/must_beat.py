"""Compare a teacher with the baselines on validation users: is it worth distilling?

The comparison is part of the teacher's artefact. Its consequence is decided after the step,
whether it ran or came from the cache: a refused teacher is kept, and changing the recipe to
``otherwise: warn`` does not train it again.
"""

import logging
from typing import TYPE_CHECKING, Any

from slmc.artefact import Artefact
from slmc.distill.config import MustBeat, TeachConfig
from slmc.errors import VerdictError

if TYPE_CHECKING:
    from slmc.data.dataset import Dataset
    from slmc.evaluation.scorers import Scorer

log = logging.getLogger("slmc.teach")


def compare(
    config: MustBeat, teacher: "Scorer", baselines: Artefact, data: "Dataset", seed: int
) -> dict[str, dict[str, Any]]:
    """Compare a teacher with every baseline of the config, paired over validation users.

    It is ranked under the protocol of the baselines, not its own. The comparisons are corrected
    for multiple testing (:func:`slmc.evaluation.multiple.compare_all`).

    Args:
        config: Baselines, metric and confidence.
        teacher: Scorer of the teacher.
        baselines: Artefact of the baselines.
        data: The dataset.
        seed: Of the bootstrap.

    Returns:
        Baseline -> outcome, values, bounds and a sentence with them; JSON-able.
    """
    import polars as pl

    from slmc.config import Protocol
    from slmc.evaluation import baselines as opponents
    from slmc.evaluation.config import EvaluateConfig
    from slmc.evaluation.evaluate import best_temperature, rank
    from slmc.evaluation.results import resolve_auto

    shared = {name: baselines.manifest.config[name] for name in ("seed", *Protocol.model_fields)}
    evaluation = resolve_auto(EvaluateConfig(**shared, split="valid"), data)
    per_user = rank(
        teacher,
        data.targets("valid"),
        data.counts,
        evaluation,
        "must_beat",
        top=0,
        temperature=best_temperature(teacher, data, evaluation)
        if config.metric == "ce_calibrated"
        else None,
    )
    tables: dict[str, pl.DataFrame] = {
        name: pl.read_parquet(baselines.file(f"{name}/valid.parquet")) for name in config.models
    }
    comparisons = opponents.compare(
        per_user,
        tables,
        config.metric,
        config=evaluation,
        confidence=config.confidence,
        seed=seed,
    )
    for name, one in comparisons.items():
        log.info("must_beat: the teacher is %s than %s: %s", one.outcome, name, one.sentence)
    return {name: one.as_dict() for name, one in comparisons.items()}


def check(config: TeachConfig, teacher: Artefact) -> None:
    """Stop or warn if the teacher is significantly worse than a baseline.

    Args:
        config: Of the current recipe.
        teacher: Trained with this config, except that ``otherwise`` may differ.

    Raises:
        VerdictError: The teacher is significantly worse, and ``otherwise`` is ``stop``.
    """
    if config.must_beat is None:
        return
    comparisons = teacher.manifest.metrics["must_beat"]
    worse = [
        f"{name}: {one['sentence']}"
        for name, one in comparisons.items()
        if one["outcome"] == "worse"
    ]
    if not worse:
        return
    what = f"the teacher is significantly worse than {'; '.join(worse)}"
    if config.must_beat.otherwise == "stop":
        raise VerdictError(
            f"teach: {what}.",
            "Train it longer or at another learning rate, give it more layers, or set "
            "must_beat.otherwise: warn, which reuses this teacher from the cache.",
        )
    log.warning("%s", what)
