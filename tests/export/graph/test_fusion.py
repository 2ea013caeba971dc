"""Matmuls of one input are merged, and their outputs cut without copies."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, run

from slmc.export.graph import fusion
from slmc.export.graph.ir import LAYERS, drop_unused, matmuls
from slmc.model.codes import rounded

QKV = """(float[1,T,4] x) => (float[1,T,4] q, float[1,T,2] k, float[1,T,2] v)
    { q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv) }"""
WITH_BIASES = """(float[1,T,4] x) => (float[1,T,4] q, float[1,T,2] k)
    { a = MatMul (x, wq)  q = Add (a, bq)  b = MatMul (x, wk)  k = Add (bk, b) }"""
SLICES = """(float[1,T,4] x) => (float[1,T,2] a, float[1,T,4] b) <float[1,T,6] y>
    { y = MatMul (x, w)  a = Slice (y, zero, two, axis)  b = Slice (y, two, end, axis) }"""
SPLIT = """(float[1,T,4] x) => (float[1,T,2] q, float[1,T,2] k, float[1,T,2] v) <float[1,T,6] y>
    { y = MatMul (x, w)  q, k, v = Split <axis = -1> (y, sizes) }"""
X = normal(1, 3, 4, seed=9)


def unmerged(names: tuple[str, ...]) -> bool:
    return bool(names)


def test_mark_layers() -> None:
    graph = model(QKV, wq=normal(4, 4), wk=normal(4, 2, seed=1), wv=normal(4, 2, seed=2)).graph
    fusion.mark_layers(graph, {"layers.0.k_proj": normal(4, 2, seed=1).T})
    assert [each.layers for each in matmuls(graph)] == [(), ("layers.0.k_proj",), ()]


def test_merge_matmuls() -> None:
    merged = model(QKV, wq=normal(4, 4), wk=normal(4, 2, seed=1), wv=normal(4, 2, seed=2))
    before = run(merged, x=X)
    for each, name in zip(matmuls(merged.graph), "qkv", strict=True):
        each.weight.meta[LAYERS] = (name,)
    fusion.merge_matmuls(merged.graph, unmerged)
    assert operators(merged.graph) == ["MatMul", "Split"]
    assert matmuls(merged.graph)[0].layers == ("q", "k", "v")
    for ours, theirs in zip(run(merged, x=X), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_merge_matmuls_with_biases() -> None:
    constants = {"wq": normal(4, 4), "wk": normal(4, 2), "bq": normal(4), "bk": normal(2)}
    merged = model(WITH_BIASES, **constants)
    before = run(merged, x=X)
    fusion.merge_matmuls(merged.graph, unmerged)
    assert operators(merged.graph) == ["MatMul", "Add", "Split"]
    for ours, theirs in zip(run(merged, x=X), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("form_of", [unmerged, lambda names: names])
def test_matmuls_of_different_forms_or_too_few_stay(form_of: object) -> None:
    graph = model(QKV, wq=normal(4, 4), wk=normal(4, 2), wv=normal(4, 2)).graph
    for each, name in zip(matmuls(graph), "qkv", strict=True):
        each.weight.meta[LAYERS] = (name,)
    fusion.merge_matmuls(graph, form_of, fewest=4 if form_of is unmerged else 2)
    assert operators(graph) == ["MatMul"] * 3


def test_split_slices() -> None:
    cut = model(SLICES, w=normal(4, 6), zero=[0], two=[2], end=[2**62], axis=[2])
    before = run(cut, x=X)
    fusion.split_slices(cut.graph)
    assert operators(cut.graph) == ["MatMul", "Split"]
    assert all((a == b).all() for a, b in zip(run(cut, x=X), before, strict=True))


def test_slices_that_overlap_stay() -> None:
    graph = model(SLICES, w=normal(4, 6), zero=[1], two=[2], end=[6], axis=[2]).graph
    fusion.split_slices(graph)
    assert operators(graph) == ["MatMul", "Slice", "Slice"]


def test_split_matmul() -> None:
    split = model(SPLIT, w=normal(4, 6), sizes=[2, 2, 2])
    before = run(split, x=X)
    matmuls(split.graph)[0].weight.meta[LAYERS] = ("qkv",)
    codes = {"qkv": rounded(normal(4, 6).T, bits=4, group_size=4)}
    fusion.split_matmul(split.graph, split.graph[1], codes)
    drop_unused(split)
    assert operators(split.graph) == ["MatMul", "MatMul", "Split"]
    assert [each.layers for each in matmuls(split.graph)] == [("qkv[0:2]",), ("qkv[2:6]",)]
    assert (codes["qkv[2:6]"].codes == codes["qkv"].codes[2:]).all()
    for ours, theirs in zip(run(split, x=X), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
