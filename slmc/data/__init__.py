"""From an interaction log to a dataset.

Read ``prepare`` (the stage), ``sources`` (files, URLs, wheels), ``sniff`` (detects the format of a
file), ``formats`` (reads its rows), ``readers`` (the log as one table), ``buckets`` (sorts it),
``split`` and ``histories``, then ``dataset`` and ``batches`` (packed histories). ``spool`` keeps on
disk what is too large for memory; ``calibration`` samples training histories. ``check`` is ``slmc
data check``. Imports artefacts and configs only.
"""
