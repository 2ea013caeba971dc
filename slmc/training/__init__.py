"""Train a recommender.

Read ``types`` (what a run needs and returns), ``loop`` (the training loop) and its parts:
``dataloader``, ``optimizer``, ``schedule`` (learning rate and early stopping), ``stability``
(diverged runs), ``clock`` (time limit), ``checkpoint`` (resume). ``next_item`` is the usual task.
``softmax`` says over which items a loss sums, ``catalogue`` has these losses. ``pretrain`` trains
SASRec, configured by ``config``. Imported by ``distill`` and ``compress``.
"""
