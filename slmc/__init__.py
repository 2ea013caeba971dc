"""slmc: distil, quantize, prune and export small language models for recommendation."""

__version__ = "0.1.0"

_TODAY = {
    "load": "`from slmc.artefact import load` reads an artefact, and `from "
    "slmc.model.loading import load_model` the model of one",
    "recommend": "`from slmc.recommend import recommend` ranks the catalogue for one history",
}
"""What does not stand here yet -> what does it today."""


def __getattr__(name: str) -> object:
    """Say what to use in the place of a function that slmc does not have here yet."""
    what = f"slmc has no {name!r}"
    if name not in _TODAY:
        raise AttributeError(f"module {what}", name=name)
    if name == "load":
        # `from slmc import load` would hide the message of an AttributeError.
        raise ImportError(f"{what} yet: {_TODAY[name]}.", name="slmc")
    raise AttributeError(f"{what} to call: {_TODAY[name]}.", name=name)
