"""Evaluate a ranking, and judge it by gates.

Read ``evaluate`` (rank the catalogue for the users of a split), ``scorers`` (what is evaluated),
``ranking`` (ranks from scores), ``metrics``, ``temperature`` (of the calibrated cross-entropy),
``results`` (the result of an evaluation) and ``baselines``; then the statistics: ``bootstrap``,
``comparison`` (paired change), ``multiple`` (Holm's correction), ``power``; then ``gates`` (the
conditions), ``judge`` and ``verdict``. Settings are in ``config``. Imported by every folder that
evaluates.
"""
