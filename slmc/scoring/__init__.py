"""Score many histories from files: ``slmc score``, with flat memory, shards and resume.

Read ``settings``, ``source`` (files to histories), ``grouping`` (interactions to histories, on
disk), ``parts`` (results on disk until all are there), ``output`` (formats) and ``score`` (the
loop). Imported by ``commands``.
"""
