"""``slmc export MODEL``."""

from slmc.commands.stage_command import stage_app

app = stage_app("export", "Turn a model into an engine that ranks the same.", "model")
