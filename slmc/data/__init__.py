"""From an interaction log to a dataset.

Read ``prepare`` (the stage), ``sources`` (files, URLs, wheels), ``sniff`` (detects the format of a
file), ``formats`` (reads its rows), ``readers`` (the log as one table), ``split``, then ``dataset``
and ``batches`` (packed histories). ``check`` is ``slmc data check``. Imports artefacts and configs
only.
"""
