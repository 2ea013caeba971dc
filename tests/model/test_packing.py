"""Windows over packed tokens: a query attends to its own history, up to itself."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from slmc.model import packing

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_a_query_attends_to_its_history_up_to_itself(
    sizes: list[int], window: int, more: int
) -> None:
    lengths = torch.tensor(sizes)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), lengths)
    tokens, longest = len(owner), max(sizes) + more
    layout = packing.stream(lengths, owner, longest, window)
    assert layout.query_index is not None and layout.key_index is not None
    assert layout.key_index.shape[1] == min(window + longest - 1, tokens)
    for query in range(tokens):
        number, place = divmod(query, window)
        assert layout.query_index[number, place] == query
        keys = layout.key_index[number][layout.mask[number, 0, place] == 0].tolist()
        assert keys == [key for key in range(query + 1) if owner[key] == owner[query]]
