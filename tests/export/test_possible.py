"""What a recipe is told of an export is what the stage says: the two never come apart."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from slmc.artefact import Artefact
from slmc.compress.table import quantize_table
from slmc.errors import UsageError
from slmc.export import lowering, possible, typed
from slmc.export.config import ExportConfig, TensorrtConfig
from slmc.export.onnx import check_precision, own_precision, table_form
from slmc.export.possible import Source, refusals
from slmc.model.codes import Codes, rounded
from slmc.model.loading import load_model

WEIGHT = np.ones((2, 96), np.float32)


def codes(bits: int, group_size: int) -> Codes:
    return rounded(WEIGHT, bits=bits, group_size=group_size)


MODELS: dict[str, list[Codes]] = {
    "floats": [],
    "four": [codes(4, 32)],
    "eight": [codes(8, 32)],
    "both": [codes(4, 32), codes(8, 32)],
    "small blocks": [codes(4, 8)],
}


def source(own: list[Codes]) -> Source:
    return Source(
        bits=frozenset(one.bits for one in own),
        group_sizes=frozenset(one.group_size for one in own),
        zero_points=any(one.zero_point is not None for one in own),
    )


def said(config: ExportConfig, known: Source, key: str) -> str | None:
    """What is said of a key: the first reason, as the stage stops at it."""
    found = [one.error() for one in refusals(config, known) if one.key == key]
    return str(found[0]) if found else None


def raised(check: Any, *given: object) -> str | None:
    try:
        check(*given)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", MODELS)
def test_precisions(name: str) -> None:
    own = dict(enumerate(MODELS[name]))
    assert source(MODELS[name]).precision == own_precision(own)  # type: ignore[arg-type]
    refused = 0
    for precision, layout, opset in product(
        ["fp32", "int8", "int8-accurate", "int4", None], ["packed", "padded"], [18, 20, 21]
    ):
        config = ExportConfig(precision=precision, layout=layout, opset=opset)  # type: ignore[arg-type]
        given = precision or own_precision(own)  # type: ignore[arg-type]
        stage = raised(check_precision, given, own, config)
        assert said(config, source(MODELS[name]), "precision") == stage
        refused += stage is not None
    assert 0 < refused < 30


@pytest.mark.parametrize("form", [None, "int4", "int8"])
def test_tables(form: str | None, model: Artefact) -> None:
    loaded = load_model(model)
    if form is not None:
        quantize_table(loaded, form)
    bits = {"int4": 4, "int8": 8}.get(form or "")
    refused = []
    for table, layout in product([None, "fp32", "int8+rescore"], ["packed", "padded"]):
        config = ExportConfig(table=table, layout=layout)  # type: ignore[arg-type]
        found = said(config, Source(table_bits=bits), "table")
        assert (found is None) == (raised(table_form, loaded, config) is None)
        refused.append(found is not None)
    assert refused == ([False] * 5 + [True] if form is None else [False] * 2 + [True] * 4)


@pytest.mark.parametrize("precision", ["bf16", "int4", None])
@pytest.mark.parametrize("name", [*MODELS, "odd blocks", "zero points"])
def test_tensorrt(name: str, precision: str | None, model: Artefact) -> None:
    odd, even = codes(4, 24), codes(4, 32)
    zeros = Codes(4, 32, even.codes, even.scale, np.zeros_like(even.scale, dtype=np.uint8))
    own = {**MODELS, "odd blocks": [odd], "zero points": [zeros]}[name]
    loaded, known = load_model(model), source(own)
    for top_k in (possible.LARGEST_K, possible.LARGEST_K + 1):
        tensorrt = TensorrtConfig(precision=precision)  # type: ignore[arg-type]
        config = ExportConfig(formats=("tensorrt",), tensorrt=tensorrt, top_k=top_k)
        given = precision or ("int4" if 4 in known.bits else "bf16")
        stage = raised(typed.check, loaded, top_k, given, dict(enumerate(own)))
        found = [key for key in ("top_k", "tensorrt.precision") if said(config, known, key)]
        assert bool(found) == (stage is not None)
        assert ("top_k" in found) == (top_k > possible.LARGEST_K)


def test_a_sasrec_has_no_padded_form(sasrec: Artefact) -> None:
    config = ExportConfig(formats=("tensorrt",), layout="padded")
    found = {one.key for one in refusals(config, Source(on_llm=False))}
    assert found == {"layout", "formats"}
    assert raised(typed.check, load_model(sasrec), 5, "bf16", {}) is not None


def test_the_numbers_are_those_of_the_graphs() -> None:
    assert possible.BLOCKS == lowering.BLOCKS
    assert possible.TENSORRT_BLOCKS == typed.BLOCKS
    assert (possible.LARGEST_K, possible.BLOCKS_FROM) == (typed.LARGEST_K, typed.OPSET)
