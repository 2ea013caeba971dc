"""Read, override and check a recipe; needs no torch.

Read ``loading`` (from text to ``Recipe``), ``resolved`` (the ``Recipe``), ``text`` (YAML with line
numbers), ``steps`` and ``reading``, ``gate_section``, ``checks`` (settings against their config),
``compatibility`` (settings that do not work together), ``faults`` (one error for all faults),
``sets``, ``paths``, ``smoke`` and ``schema``. Of repeated steps: ``seeds``, ``sweep``,
``small_sweep`` (of a smoke run) and ``copies``.
"""

from slmc.recipe.loading import Head, load, packaged, renamed, text_of
from slmc.recipe.resolved import VERSION, Recipe, resolved_yaml

__all__ = ["VERSION", "Head", "Recipe", "load", "packaged", "renamed", "resolved_yaml", "text_of"]
