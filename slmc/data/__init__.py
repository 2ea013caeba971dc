"""From an interaction log to a dataset.

Read ``prepare`` (the stage), ``sources`` (files, URLs, wheels), ``sniff`` (detects the format of a
file), ``formats`` (reads its rows), ``readers`` (the log as one table), ``sorting``, ``split`` and
``histories``, then ``dataset`` and ``batches`` (packed histories). ``spool`` and ``buckets`` keep
on disk what is too large for memory; ``calibration`` samples training histories. ``check`` is
``slmc data check``. Imports artefacts and configs only.
"""
