"""``slmc bench ENGINE``."""

from slmc.commands.stages import stage_app

app = stage_app("bench", "Time an engine on real histories.", "engine")
