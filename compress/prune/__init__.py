"""Structured pruning.

Read ``prune`` (the stage), ``sizes`` (the shape of the pruned model), ``units`` (KV groups and MLP
channels as slices of weights), ``importance`` (their scores), ``width`` (remove them) and ``depth``
(search the layers to remove).
"""
