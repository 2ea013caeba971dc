"""Model repositories for Triton Inference Server.

``repository`` writes the folder ``triton/`` of an engine; ``model`` is the file that Triton's
Python backend runs there, so it imports nothing of slmc.
"""
