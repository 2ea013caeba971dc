"""The ONNX graph of an engine.

Read ``trace`` (the graph as torch exports it), then ``ir`` (how every pass reads and changes a
graph) and ``optimize`` (the passes in their order), then the passes: ``norms``, ``last_layer``,
``rotary``, ``fusion``, ``heads``, ``lowering`` with ``dynamic_int8`` and ``nbits``, ``softmax``,
``item_table``, ``rescore``, ``histories``, ``masks``. ``interface`` holds the names of inputs and
outputs, ``outputs`` adds outputs, ``serialize`` writes files.

Imported by the rest of ``export``; imports ``reference`` and the models.
"""
