"""``slmc prune MODEL``."""

from slmc.commands.stage_command import stage_app

app = stage_app("prune", "Take layers, attention heads and MLP channels out of a model.", "model")
