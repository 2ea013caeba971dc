"""Structured pruning.

Read ``prune`` (the stage), ``sizes`` (the shape that is left), ``units`` (heads and channels as
slices of weights), ``importance`` (which of them matter), ``width`` (cut them out) and ``depth``
(cut out layers).
"""
