"""Compress a trained recommender by pruning and quantization.

``config`` holds all settings. ``prune/`` removes layers, attention heads and MLP channels,
``quantize/`` stores weights in 4 or 8 bits. Both use ``validation`` (the ranking before and after)
and the calibration set of :mod:`slmc.data.calibration`. Only ``stages``, ``recipe``, ``pipeline``
and ``commands`` import from here.
"""
