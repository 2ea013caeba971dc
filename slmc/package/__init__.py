"""A folder that serves an engine without slmc: ``slmc package``.

Read ``package.py`` first, which writes the folder. ``recommender.py`` and ``serve.py`` are copied
into it: they import only onnxruntime, numpy and the standard library. ``Dockerfile``,
``compose.yaml`` and ``README.md`` are templates. Only ``slmc.commands`` imports this folder.
"""
