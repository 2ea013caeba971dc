"""The Open Inference Protocol, version 2, under ``/v2``."""

from fastapi import FastAPI

from slmc.server.engines import Engines


def add_routes(app: FastAPI, engines: Engines) -> None:
    """Add the routes."""
