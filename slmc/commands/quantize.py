"""``slmc quantize MODEL``."""

from slmc.commands.stage_command import stage_app

app = stage_app("quantize", "Store a model's weights in 4 or 8 bits.", "model")
