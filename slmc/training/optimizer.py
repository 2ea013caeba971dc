"""The AdamW optimizer of every training stage, and the clipping of its gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slmc.config import TrainConfig

BETA1 = 0.9


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW that updates only those rows of a table that have a gradient, if it is sparse.

    A step costs as much as these rows, however large the table is. Each row is updated, decayed
    and bias-corrected as if the steps without a gradient for it had not been: a row's moments do
    not fade while it rests, and its first update is as large as any first update of AdamW
    (``torch.optim.SparseAdam`` counts all steps, so the first update of a late row is larger). The
    moments have the size of the table, as those of AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the rows of sparse gradients, then everything else as AdamW."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                # A loss term that starts or ends can change the kind of the gradient.
                if parameter.grad.is_sparse and "step" in self.state[parameter]:
                    parameter.grad = parameter.grad.to_dense()
                elif parameter.grad.is_sparse or "row_steps" in self.state[parameter]:
                    self._update_rows(parameter, group)
                    parameter.grad = None
        return super().step(closure)

    def _update_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        """Update the rows of ``table [R, d]`` that have a gradient."""
        state = self.state[table]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["row_steps"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        assert table.grad is not None
        if table.grad.is_sparse:
            sparse = table.grad.coalesce()
            rows, grad = sparse.indices()[0], sparse.values()
        else:
            rows, grad = torch.arange(len(table), device=table.device), table.grad
        beta1, beta2 = group["betas"]
        steps = state["row_steps"][rows] + 1
        mean = state["exp_avg"][rows].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["row_steps"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = (
            steps,
            mean,
            square,
        )
        count = steps[:, None].to(grad.dtype)
        denominator = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
        update = mean / (1 - beta1**count) / denominator
        kept = table[rows] * (1 - group["lr"] * group["weight_decay"])
        table[rows] = kept - group["lr"] * update


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients, sparse ones too, to a common norm of at most ``most``.

    Returns:
        The norm before.
    """
    grads = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            grads.append(parameter.grad.values())
        elif parameter.grad is not None:
            grads.append(parameter.grad)
    norm: Tensor = nn.utils.get_total_norm(grads)
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)
    return norm


def adamw(
    groups: Sequence[dict[str, Any]], config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) over parameter groups, each with its peak ``lr``.

    ``config.weight_decay`` applies to matrices, not to vectors (norms, biases).
    """
    return RowwiseAdamW(
        _decayed(groups, config.weight_decay),
        betas=(BETA1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )


def _decayed(groups: Sequence[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """Split each group into its matrices and its vectors."""
    split = []
    for group in groups:
        for matrices in (True, False):
            params = [p for p in group["params"] if (p.ndim >= 2) is matrices]
            if params:
                split.append(group | {"params": params, "weight_decay": decay if matrices else 0.0})
    return split
