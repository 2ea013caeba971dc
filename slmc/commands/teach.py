"""``slmc teach --data DATA --backbone LLM``: SASRec and the baselines are made where not named."""

from collections.abc import Mapping

from slmc.artefact import Artefact
from slmc.commands.stage_command import stage_app
from slmc.stages import STAGES


def _made(role: str, found: Mapping[str, Artefact]) -> Artefact:
    """Run the stage of that name with its defaults, through the cache."""
    from slmc.pipeline import run_stage

    stage = STAGES[role]
    return run_stage(role, stage.config(), {taken: found[taken] for taken in stage.takes})


app = stage_app(
    "teach",
    "Train an LLM to rank the catalogue: the teacher.",
    None,
    supply={"sasrec": _made, "baselines": _made},
)
