"""End a recommender after an earlier block, with the head that was trained for that block."""

import logging

import torch
from torch import Tensor

from slmc.artefact import Artefact
from slmc.compress.prune.sizes import Kept, resized
from slmc.compress.prune.width import check_same
from slmc.model.exit_heads import ExitHeads
from slmc.model.loading import place
from slmc.model.recommender import SequentialRecommender

log = logging.getLogger("slmc.prune")


@torch.no_grad()
def early_exit(
    model: SequentialRecommender, source: Artefact, block: int, ids: Tensor
) -> SequentialRecommender:
    """Return an ordinary, shallower recommender whose user vectors are those of a block's head.

    The head reads the states after the block before any norm, so the decoder's final norm is left
    out.

    Args:
        model: Loaded from ``source``; left as it is.
        source: The model artefact, with the heads of its blocks.
        block: Counted from 1.
        ids: ``[B, L]`` histories, none empty, on which the result is compared with the head.

    Raises:
        UsageError: The model has no head after this block, or its final norm is not known.
        BrokenRunError: The recommender differs from the head.
    """
    heads = ExitHeads.open(source)
    end = heads.end_of(block)
    head = heads.weights[block - 1].to(model.device)
    config = resized(model.config, Kept(tuple(range(end + 1)), {}))
    config.final_norm = False
    short = SequentialRecommender(config)
    weights = model.state_dict() | {"output_proj.weight": head}
    names = short.state_dict()
    short.load_state_dict({name: tensor for name, tensor in weights.items() if name in names})
    place(short, model.device)
    with model.block_states((end,)) as states:
        model.user_vectors(ids)
    last = ((ids != 0).sum(dim=1) + len(model.prompt)).cumsum(dim=0) - 1
    kind = config.backbone_config.model_type
    check_same(short.user_vectors(ids), states[0][last] @ head.T, kind)
    log.info("prune: the model ends after block %d, its layer %d", block, end + 1)
    return short
