"""``slmc export MODEL``."""

from slmc.commands.stages import stage_app

app = stage_app("export", "Turn a model into an engine that ranks the same.", "model")
