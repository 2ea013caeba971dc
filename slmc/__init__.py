"""slmc: distil, quantize, prune and export small language models for recommendation."""

__version__ = "0.1.0"

_INSTEAD = {
    "load": "`from slmc.artefact import load` reads an artefact, and `from "
    "slmc.model.loading import load_model` the model of one",
    "recommend": "`from slmc.recommend import recommend` ranks the catalogue for one history",
}
"""Name that ``slmc`` does not have yet -> what to use instead."""


def __getattr__(name: str) -> object:
    """Raise an error that names what to use instead."""
    what = f"slmc has no {name!r}"
    if name not in _INSTEAD:
        raise AttributeError(f"module {what}", name=name)
    if name == "load":
        # `from slmc import load` would hide the message of an AttributeError.
        raise ImportError(f"{what} yet: {_INSTEAD[name]}.", name="slmc")
    raise AttributeError(f"{what} to call: {_INSTEAD[name]}.", name=name)
