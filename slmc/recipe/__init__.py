"""Read, override and check a recipe; needs no torch.

Read ``loading`` (from text to ``Recipe``), ``text`` (YAML with line numbers), ``steps``,
``gate_section``, ``checks``, ``misfits`` (combinations that no later step can do), ``faults`` (all
of them at once), ``sets`` and ``paths``, ``smoke`` and ``schema``.
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
