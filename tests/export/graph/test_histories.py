"""Histories of any length and number."""

import numpy as np
import onnxruntime
import pytest
from small_graphs import model, operators, run

from slmc.export.graph.histories import accept_all_lengths

ITEMS, HISTORY = 4, 3
SUM = """(int64[B,L] item_ids) => (float[B] total)
    { vectors = Gather (table, item_ids)  total = ReduceSum <keepdims = 0> (vectors, last) }"""
TABLE = np.array([0, 1, 10, 100, 1000], np.float32)


def test_accept_all_lengths() -> None:
    changed = model(SUM, table=TABLE, last=[1])
    accept_all_lengths(changed.graph, HISTORY, ITEMS)
    assert operators(changed.graph) == [
        "Slice", "Less", "Where", "Shape", "Sub", "Max", "Concat", "Pad", "Shape",
        "Gather", "ReduceSum", "Slice",
    ]  # fmt: skip
    assert [value.name for value in changed.graph.outputs] == ["total"]
    (newest,) = run(changed, item_ids=np.array([[4, 1, 2, 3]]))
    assert newest.tolist() == [111]
    (padding,) = run(changed, item_ids=np.zeros((2, 0), np.int64))
    assert padding.tolist() == [0, 0]
    (none,) = run(changed, item_ids=np.zeros((0, 2), np.int64))
    assert none.shape == (0,)


@pytest.mark.parametrize("row", [-1, ITEMS + 1])
def test_rows_that_the_table_lacks_are_refused(row: int) -> None:
    changed = model(SUM, table=TABLE, last=[1])
    accept_all_lengths(changed.graph, HISTORY, ITEMS)
    error = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(error, match="out of data bounds"):
        run(changed, item_ids=np.array([[row]]))
