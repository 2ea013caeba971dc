"""From an interaction log to a dataset.

Read ``prepare`` (the stage), ``sources`` (files, URLs, wheels), ``sniff`` and ``formats`` (what a
file is, its rows), ``readers`` (the log as one table), ``split``, then ``dataset`` and ``batches``
(packed histories). ``check`` is ``slmc data check``. Imports artefacts and configs only.
"""
