"""The catalogue, the model and the engine of :mod:`served`."""

from served import catalogue, engine, model, place

__all__ = ["catalogue", "engine", "model", "place"]
