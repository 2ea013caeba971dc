"""``slmc bench ENGINE``."""

from typing import TYPE_CHECKING

from slmc.artefact import Artefact
from slmc.commands.stage_command import stage_app

if TYPE_CHECKING:
    from rich.table import Table


def _table(made: Artefact) -> "Table":
    from slmc.report.tables import timings
    from slmc.report.terminal import timing_table

    return timing_table(timings(made, {"engine": "engine", "baseline": "baseline"}))


app = stage_app("bench", "Time an engine on real histories.", "engine", table=_table)
