"""slmc: distil, quantize, prune and export small language models for recommendation."""

__version__ = "0.1.0"
