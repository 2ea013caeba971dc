"""The item table in integers, against plain numpy."""

import numpy as np
import pytest
import torch
from quantizable import ITEMS, WIDTH, batches, build
from torch import Tensor

from slmc.compress.quantize.item_table import packed, quantize_table, rowwise
from slmc.model.quantized_table import QuantizedTable

BITS = {"int8": 8, "int4": 4}


def plain(weight: Tensor, bits: int) -> np.ndarray:
    """The table after a round trip, row by row in float64."""
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.double().numpy():
        scale = np.abs(row).max() / top
        rows.append(np.round(row / scale) * scale if scale else row)
    return np.array(rows)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_table_is_what_plain_numpy_makes_of_it(form: str) -> None:
    model = build("llama", 2)
    before = model.item_vectors().detach().clone()
    quantize_table(model, form)
    table = model.item_embeddings
    assert isinstance(table, QuantizedTable)
    np.testing.assert_allclose(
        model.item_vectors().numpy(), plain(before, BITS[form]), rtol=1e-5, atol=1e-7
    )
    assert table.codes.numel() * table.codes.element_size() == (ITEMS + 1) * WIDTH * BITS[form] // 8
    assert model.config.item_bits == BITS[form]
    assert (model.item_vectors()[0] == 0).all()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_single_rows_are_those_of_the_whole_table(form: str) -> None:
    model = build("llama", 2)
    quantize_table(model, form)
    rows = torch.tensor([[3, 0], [ITEMS, 3]])
    assert torch.equal(model.item_embeddings(rows), model.item_vectors()[rows])


@pytest.mark.parametrize("width", [1, 6, 7])
def test_packing_keeps_every_code(width: int) -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(width)[: 16 * width].view(16, width)
    table = QuantizedTable(16, width, 4)
    table.codes, table.scale = packed(codes), torch.ones(16, 1)
    assert table.codes.shape == (16, (width + 1) // 2)
    assert torch.equal(table.weight, codes.float())


def test_known_row() -> None:
    codes, scale = rowwise(torch.tensor([[7.0, -3.4, 0.0], [0.0, 0.0, 0.0]]), 4)
    assert codes.tolist() == [[7, -3, 0], [0, 0, 0]]
    assert scale.tolist() == [[1.0], [0.0]]
    assert packed(codes).tolist() == [[15 | 5 << 4, 8], [8 | 8 << 4, 8]]


def test_a_model_scores_with_it_as_with_the_floats_that_it_stands_for() -> None:
    model, reference = build("qwen3", 2), build("qwen3", 2)
    quantize_table(model, "int8")
    with torch.no_grad():
        reference.get_parameter("item_embeddings.weight").copy_(model.item_vectors())
        assert torch.equal(model(batches()[0]), reference(batches()[0]))
