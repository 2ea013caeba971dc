"""The baseline of ``bench``: a model in PyTorch with padded histories and SDPA attention.

Letters: B histories, L their padded length, d vector width, k returned items.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc.data.batches import pad_left
from slmc.export.runtime.engine import Histories
from slmc.model.loading import Recommender
from slmc.model.recommender import SequentialRecommender


class PlainModel:
    """A recommender without packing; the backbone is changed to attention of transformers."""

    def __init__(self, model: Recommender, top_k: int) -> None:
        """Take a model in evaluation mode, and set the attention of its backbone to SDPA."""
        self.model, self.top_k = model, top_k
        if isinstance(model, SequentialRecommender):
            model.backbone.set_attn_implementation("sdpa")

    @torch.inference_mode()
    def top(self, histories: Histories) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best rows of each history, best first, and their scores, both ``[B, k]``."""
        item_ids = torch.from_numpy(pad_left(histories, self.model.config.history))
        items = self.model.item_vectors()
        users = plain_user_vectors(self.model, item_ids.to(items.device))
        values, rows = torch.topk(users @ items[1:].T, self.top_k)
        return rows.cpu().numpy() + 1, values.float().cpu().numpy()


def plain_user_vectors(model: Recommender, item_ids: Tensor) -> Tensor:
    """Compute user vectors ``[B, d]`` of rows ``[B, L]``, padded with 0 on the left.

    Padding tokens go through the backbone too, under a mask. A SASRec has no backbone of
    transformers; it computes the same padded batch with its own attention.
    """
    if not isinstance(model, SequentialRecommender):
        return model.padded_user_vectors(item_ids)
    prefix, suffix = model.config.prefix_length, model.config.suffix_length
    positions = torch.arange(prefix + suffix, device=item_ids.device)
    prompt = (-1 - positions).expand(len(item_ids), -1)
    tokens = torch.cat([prompt[:, :prefix], item_ids, prompt[:, prefix:]], dim=1)
    real = tokens != 0
    states = model.backbone(
        inputs_embeds=model.embed(tokens.reshape(-1)).reshape(*tokens.shape, -1),
        attention_mask=real.long(),
        position_ids=(real.long().cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    return model.head(states[:, -1])
