"""Why an export is refused, from the properties of the stored model."""

from typing import Any

import numpy as np
import pytest

from slmc.artefact import Artefact
from slmc.compress.quantize.item_table import quantize_table
from slmc.export.config import ExportConfig
from slmc.export.constraints import LARGEST_K, Source, refusals
from slmc.export.export import source_of
from slmc.model.codes import Codes, rounded
from slmc.model.loading import load_model

FLOATS = Source()
FOUR = Source(bits=frozenset([4]), group_sizes=frozenset([32]))
EIGHT = Source(bits=frozenset([8]), group_sizes=frozenset([32]))
BOTH = Source(bits=frozenset([4, 8]), group_sizes=frozenset([32]))
SMALL = Source(bits=frozenset([4]), group_sizes=frozenset([8]))
ZEROS = Source(bits=frozenset([4]), group_sizes=frozenset([32]), zero_points=True)
TABLE = Source(table_bits=4)


def keys(source: Source, **config: Any) -> list[str]:
    return [one.key for one in refusals(ExportConfig.model_validate(config), source)]


@pytest.mark.parametrize(
    ("source", "config", "expected"),
    [
        (FLOATS, {}, []),
        (FLOATS, {"precision": "int8"}, []),
        (FLOATS, {"precision": "fp16"}, []),
        (FLOATS, {"precision": "int4"}, ["precision"]),
        (EIGHT, {"precision": "int4"}, ["precision"]),
        (BOTH, {"precision": "int4"}, []),
        (FOUR, {"precision": "int8"}, ["precision"]),
        (FOUR, {"precision": "fp32"}, []),
        (EIGHT, {"precision": "int8"}, ["precision"]),
        (EIGHT, {"precision": "int8-accurate"}, []),
        (BOTH, {"precision": "int8-accurate"}, ["precision"]),
        (FOUR, {"opset": 20}, []),
        (FOUR, {"opset": 20, "layout": "padded"}, ["precision"]),
        (SMALL, {"opset": 20}, ["precision"]),
        (SMALL, {"opset": 21}, []),
        (FLOATS, {"precision": "int8-accurate", "layout": "padded", "opset": 20}, []),
        (FLOATS, {"table": "int8+rescore"}, []),
        (FLOATS, {"table": "int8+rescore", "layout": "padded"}, ["table"]),
        (TABLE, {"table": "fp32"}, ["table"]),
        (TABLE, {"layout": "padded", "opset": 20}, ["opset"]),
        (FLOATS, {"formats": ["tensorrt"], "top_k": LARGEST_K}, []),
        (FLOATS, {"formats": ["tensorrt"], "top_k": LARGEST_K + 1}, ["top_k"]),
        (FLOATS, {"top_k": LARGEST_K + 1}, []),
        (Source(history=50), {"formats": ["tensorrt"], "tensorrt": {"length": [51]}},
         ["tensorrt.length"]),
        (FLOATS, {"formats": ["tensorrt"], "tensorrt": {"precision": "int4"}},
         ["tensorrt.precision"]),
        (FOUR, {"formats": ["tensorrt"], "tensorrt": {"precision": "int8"}},
         ["tensorrt.precision"]),
        (EIGHT, {"formats": ["tensorrt"], "tensorrt": {"precision": "fp8"}},
         ["tensorrt.precision"]),
        (FLOATS, {"formats": ["tensorrt"], "tensorrt": {"precision": "fp8"}}, []),
        (FOUR, {"formats": ["tensorrt"]}, []),
        (SMALL, {"formats": ["tensorrt"]}, ["tensorrt.precision"]),
        (ZEROS, {"formats": ["tensorrt"]}, ["tensorrt.precision"]),
        (ZEROS, {"formats": ["tensorrt"], "tensorrt": {"precision": "bf16"}}, []),
    ],
)  # fmt: skip
def test_what_is_refused(source: Source, config: dict[str, Any], expected: list[str]) -> None:
    assert keys(source, **config) == expected


def test_the_properties_of_a_model(model: Artefact, sasrec: Artefact) -> None:
    loaded = load_model(model)
    assert source_of(loaded, {}) == Source(history=12)
    assert source_of(load_model(sasrec), {}) == Source(on_llm=False, history=12)
    weight = np.ones((2, 96), np.float32)
    plain, eight = (rounded(weight, bits=bits, group_size=32) for bits in (4, 8))
    zeros = Codes(4, 24, plain.codes, plain.scale, np.zeros_like(plain.scale, dtype=np.uint8))
    quantize_table(loaded, "int8")
    source = source_of(loaded, {"a": plain, "b": eight, "c": zeros})
    assert source == Source(frozenset([4, 8]), frozenset([24, 32]), True, 8, True, 12)
    assert (source.precision, source_of(loaded, {"b": eight}).precision) == (
        "int4",
        "int8-accurate",
    )
