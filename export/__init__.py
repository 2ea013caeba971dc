"""Turn a model into an engine, check that it gives the same recommendations, and time it.

Read ``config``, then ``export`` (the stage), then the folders in this order:

- ``graph/`` traces the model and rewrites its ONNX graph,
- ``reference/`` computes the model in PyTorch in the engine's precision, for parity,
- ``runtime/`` runs engines in ONNX Runtime and times them,
- ``items/`` gives items that are newer than the model vectors,
- ``index/`` builds an index of the item vectors and measures it,
- ``tensorrt/`` builds and runs TensorRT plans,
- ``triton/`` writes a model repository for Triton Inference Server.

The other modules: ``constraints`` (what cannot be exported), ``parity``, ``vocabulary`` (items and
their ids), ``evaluation`` (ranking metrics of an engine) and ``card`` (its README). Only
``recommend``, ``stages``, ``recipe``, ``pipeline`` and ``commands`` import from here; other stage
folders never do.
"""
