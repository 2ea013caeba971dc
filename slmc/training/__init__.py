"""Train a recommender.

Read ``loop`` (the one training loop), ``next_item`` (its usual task), ``catalogue`` (losses over
all items), ``schedule`` and ``optimizer``, ``checkpoint`` (resume) and ``types``. ``pretrain``
trains SASRec, with the settings of ``config``. Imported by ``distill`` and ``compress``.
"""
