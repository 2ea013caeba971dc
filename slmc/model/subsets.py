"""User vectors of many choices of layers of one model, without computing a layer twice.

Choices that begin with the same layers share them: the first 1, 2, … L layers of a model cost one
pass over all of it. Letters: ``S`` choices, ``B`` histories, ``d`` item width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slmc.model.layers import Layers
from slmc.model.recommender import SequentialRecommender


@dataclass
class _Node:
    """A beginning that some choices share."""

    layer: int = -1
    """Its last layer; -1 for the empty beginning."""
    ends: list[int] = field(default_factory=list)
    """Choices that have no further layer."""
    next: dict[int, "_Node"] = field(default_factory=dict)
    size: int = 1
    """Number of beginnings that start with this one, itself included."""


@torch.no_grad()
def user_vectors(
    model: SequentialRecommender, item_ids: Tensor, choices: Sequence[Layers]
) -> Tensor:
    """Return the user vectors that the model would have with some of its layers only.

    Args:
        model: In evaluation mode; each layer gets its own arguments (positions, kind of attention)
            as in the whole model.
        item_ids: ``[B, L]`` int64 histories, padded with 0 on the left.
        choices: S choices of layers.

    Returns:
        ``[S, B, d]`` float32.
    """
    calls = _Calls(model)
    start = calls.record(item_ids)
    vectors: list[Tensor | None] = [None] * len(choices)
    waiting = [(_tree(choices), start)]
    while waiting:
        node, before = waiting.pop()
        after = before if node.layer < 0 else calls.layer(node.layer, before)
        if node.ends:
            ended = calls.head(item_ids, after)
            for choice in node.ends:
                vectors[choice] = ended
        # The largest branch comes last, when no other state has to be kept: the number of states
        # in memory grows with the logarithm of the number of nodes.
        largest_first = sorted(node.next.values(), key=lambda one: -one.size)
        waiting += [(one, after) for one in largest_first]
        del before, after
    return torch.stack([one for one in vectors if one is not None])


def layers_computed(choices: Sequence[Layers]) -> int:
    """Return how many layers are computed for these choices, shared ones once."""
    return _tree(choices).size - 1


def _tree(choices: Sequence[Layers]) -> _Node:
    root = _Node()
    for number, layers in enumerate(choices):
        path = [root]
        for layer in layers:
            path.append(path[-1].next.setdefault(layer, _Node(layer)))
        path[-1].ends.append(number)
    _set_sizes(root)
    return root


def _set_sizes(root: _Node) -> None:
    order = [root]
    for node in order:
        order += node.next.values()
    for node in reversed(order):
        node.size = 1 + sum(one.size for one in node.next.values())


class _Calls:
    """Computes layers of a model one by one, with the arguments that its decoder gives them."""

    def __init__(self, model: SequentialRecommender) -> None:
        self.model = model
        self.originals = [layer.forward for layer in model.layers]
        self.arguments: list[tuple[Any, Any]] = [((), {})] * len(model.layers)

    def record(self, item_ids: Tensor) -> Tensor:
        """Remember the arguments of every layer; returns the input of the first one."""
        inputs: list[Tensor] = []

        def recorder(number: int) -> Callable[..., Tensor]:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                self.arguments[number] = args, kwargs
                inputs.append(hidden_states)
                return hidden_states

            return forward

        with _replaced(self.model.layers, recorder):
            self.model.user_vectors(item_ids)
        return inputs[0]

    def layer(self, number: int, states: Tensor) -> Tensor:
        """Return the output of a layer."""
        args, kwargs = self.arguments[number]
        output = self.originals[number](states, *args, **kwargs)
        after: Tensor = output[0] if isinstance(output, tuple) else output
        return after

    def head(self, item_ids: Tensor, states: Tensor) -> Tensor:
        """Return user vectors ``[B, d]`` from the states after the last layer of a choice."""
        with _replaced(self.model.layers, lambda _: lambda *_, **__: states):
            return self.model.user_vectors(item_ids).float()


@contextmanager
def _replaced(
    layers: nn.ModuleList, forward_of: Callable[[int], Callable[..., Tensor]]
) -> Iterator[None]:
    """Replace what layers compute, by their number."""
    for number, layer in enumerate(layers):
        layer.forward = forward_of(number)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
