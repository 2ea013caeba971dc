"""Vectors of items that are newer than a model, without training.

Read ``new_items`` (adds them to the table of a model), then where the vectors come from:
``item_file`` (the file of the user: texts, neighbours or vectors), ``given`` (its checks),
``cooccurrence`` (neighbours from a log) and ``neighbours`` (from neighbours to a vector). ``table``
changes the item table.
"""
