"""slmc: distil, quantize, prune and export small language models for recommendation.

The functions below are imported from :mod:`slmc.api` on first use, so that ``import slmc`` imports
nothing else. Type checkers read their types in ``__init__.pyi``.
"""

from importlib import import_module

__version__ = "0.1.0"

__all__ = [
    "Engine",
    "Evaluation",
    "Recommendation",
    "Recommendations",
    "Recommender",
    "Run",
    "__version__",
    "evaluate",
    "load",
    "run",
]


def __getattr__(name: str) -> object:
    """Import a public name; an error names what to use instead."""
    if name in __all__:
        value: object = getattr(import_module("slmc.api"), name)
        globals()[name] = value
        return value
    if name == "recommend":
        raise AttributeError(
            "slmc has no 'recommend' to call: `slmc.load(path).recommend(history)` ranks the "
            "catalogue for one history.",
            name=name,
        )
    raise AttributeError(f"module slmc has no {name!r}", name=name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
