"""``slmc distill TEACHER``."""

from slmc.commands.stages import stage_app

app = stage_app("distill", "Distil a teacher into a student.", "teacher")
