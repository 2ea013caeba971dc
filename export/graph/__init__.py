"""The ONNX graph of an engine.

Read ``trace`` (the graph as torch gives it), then ``optimize`` (the passes in their order), then
the passes: ``norms``, ``last_layer``, ``rotary``, ``fusion``, ``heads``, ``lowering``,
``item_table``, ``rescore``, ``histories``, ``masks``. ``interface`` holds the names of inputs and
outputs, ``ir`` what every pass needs to change a graph, ``outputs`` adds outputs, ``serialize``
writes files.

Imported by the rest of ``export``; imports ``reference`` and the models.
"""
