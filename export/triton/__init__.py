"""Model repositories for Triton Inference Server.

``repository`` writes the folder ``triton/`` of an engine; ``model`` is copied there for Triton's
Python backend, so it imports nothing from slmc.
"""
