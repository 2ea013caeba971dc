"""Measure a ranking and judge it.

Read ``evaluate`` (rank the catalogue for the users of a split), ``ranking`` (ranks from scores),
``metrics``, ``measured`` (the result of an evaluation) and ``baselines``; then the statistics:
``bootstrap``, ``power``, ``multiple``, ``temperature``; then ``gates`` (what can be asked) and
``verdict`` (how it is judged). Settings are in ``config``. Imported by every folder that measures.
"""
