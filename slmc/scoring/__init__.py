"""Score many histories from files: ``slmc score``, with flat memory, shards and resume.

Read ``settings``, ``batches`` (users with histories), ``blocks`` (rows of a file), ``source`` (the
files of an input), ``grouping`` (interactions to histories), ``id_lists`` (items to allow or deny),
``answering`` (from histories to a result), ``parts`` (results on disk until all are there),
``output`` (formats), ``target`` (the place of the result) and ``score`` (the loop). ``on_ray``
ranks on a cluster, with ``pieces`` (what is read at the same time) and ``shipping`` (the model for
other machines). Imported by ``commands``.
"""
