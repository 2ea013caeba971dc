"""Recommend with a model or an engine: original ids in, original ids out.

Read ``catalogue`` (ids and rows), ``histories`` (many histories as one array), ``ranking`` (the
best rows of a model or an engine, without excluded items), ``frames`` (data frames to histories),
``recommender`` (what users call) and ``opening`` (from a path to a recommender). Imported by
``scoring``, ``recommend``, ``api`` and ``commands``.
"""
