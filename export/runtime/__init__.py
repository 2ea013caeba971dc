"""Answer with an engine, and time it.

``engine`` opens an engine in ONNX Runtime and needs no torch. ``sessions`` finds how many parallel
sessions with how many threads are fastest, ``pages`` puts weights into large memory pages,
``bench`` is the stage that times an engine, ``cold_start`` times a fresh process, and ``pytorch``
runs the model as it is usually run, to compare with. Imported by the rest of ``export``.
"""
