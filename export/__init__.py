"""Turn a model into an engine, prove that it gives the same recommendations, and time it.

Read ``config``, then ``export`` (the stage), then the folders in this order:

- ``graph/`` traces the model and rewrites its ONNX graph,
- ``reference/`` computes the model in PyTorch in the engine's precision: what parity compares with,
- ``runtime/`` answers with ONNX Runtime, and times it,
- ``tensorrt/`` builds and runs TensorRT plans,
- ``triton/`` writes a model repository for Triton Inference Server.

Beside them: ``constraints`` (what cannot be exported), ``parity``, ``vocabulary`` (items and their
ids), ``evaluation`` (the ranking of an engine) and ``card`` (its README). Only ``stages``,
``recipe``, ``pipeline`` and ``commands`` import from here; other stage folders never do.
"""
