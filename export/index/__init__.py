"""An index of the item vectors beside an engine: ``--index``.

Read ``build`` (two kinds of index and their settings), ``measure`` (recall and latency against the
engine's exact search) and ``write`` (the files, or why the index is withheld). Searching is in
:mod:`slmc.export.runtime.vector_index`.
"""
