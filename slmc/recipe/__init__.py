"""Recipes: the file that says what is made, how, and what it must reach. Needs no torch."""

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
