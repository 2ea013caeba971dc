"""Score many histories from files: ``slmc score``, with flat memory, shards and resume.

Read ``settings``, ``blocks`` (rows of a file), ``source`` (the files of an input), ``grouping``
(interactions to histories), ``id_lists`` (items to allow or deny), ``parts`` (results on disk until
all are there), ``output`` (formats) and ``score`` (the loop). Imported by ``commands``.
"""
