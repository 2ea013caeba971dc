"""``slmc distill TEACHER``."""

from slmc.commands.stage_command import stage_app

app = stage_app("distill", "Distil a teacher into a student.", "teacher")
