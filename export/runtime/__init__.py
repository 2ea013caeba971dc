"""Run an engine, and time it.

``engine`` opens an engine in ONNX Runtime and needs no torch. ``sessions`` finds the fastest number
of parallel sessions and threads, ``pages`` puts weights into large memory pages, ``bench`` is the
stage that times an engine, ``cold_start`` times a fresh process, and ``pytorch`` runs the model in
the usual way, as the baseline. Imported by the rest of ``export``.
"""
