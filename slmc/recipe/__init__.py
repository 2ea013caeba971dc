"""Read, override and check a recipe; needs no torch.

Read ``loading`` (from text to ``Recipe``), ``text`` (YAML with line numbers), ``steps``,
``gate_section``, ``checks`` (settings against their config), ``compatibility`` (settings that do
not work together), ``faults`` (one error for all faults), ``sets``, ``paths``, ``smoke`` and
``schema``.
"""

from slmc.recipe.loading import (
    VERSION,
    Head,
    Recipe,
    load,
    packaged,
    renamed,
    resolved_yaml,
    text_of,
)

__all__ = ["VERSION", "Head", "Recipe", "load", "packaged", "renamed", "resolved_yaml", "text_of"]
