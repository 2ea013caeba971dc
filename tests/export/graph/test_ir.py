"""The tape and the other tools of every pass."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, run

from slmc.export.graph import ir as tools
from slmc.export.graph.ir import Tape, constant, replace

TWO_NODES = "(float[N] x) => (float[N] y) { hidden = Neg (x)  y = Abs (hidden) }"


def test_a_tape_names_and_places_new_nodes() -> None:
    graph = model(TWO_NODES).graph
    first, last = graph
    tape = Tape(graph, "new", after=first)
    exp = tape.op("Exp", [first.outputs[0]])
    tape.op("Add", [exp, tape.constant(np.float32(1), "one")])
    Tape(graph, "other", before=last).cast(exp, "INT64")
    assert operators(graph) == ["Neg", "Exp", "Add", "Cast", "Abs"]
    names = [(node.name, node.outputs[0].name) for node in list(graph)[1:4]]
    assert names == [
        ("new_1_Exp", "new_1_Exp_0"),
        ("new_2_Add", "new_2_Add_0"),
        ("other_1_Cast", "other_1_Cast_0"),
    ]
    assert "new_one" in graph.initializers


def test_an_operator_with_several_outputs() -> None:
    graph = model("(float[4] x) => (float[4] y) { y = Neg (x) }").graph
    tape = Tape(graph, "cut", before=graph[0])
    parts = tape.ops("Split", [graph.inputs[0]], {"num_outputs": 2}, outputs=2)
    assert [part.name for part in parts] == ["cut_1_Split_0", "cut_1_Split_1"]


def test_a_new_value_takes_over_name_type_shape_and_uses() -> None:
    changed = model(TWO_NODES)
    graph = changed.graph
    neg, absolute = graph
    old = absolute.outputs[0]
    new = Tape(graph, "new", before=absolute).op("Exp", [neg.outputs[0]])
    replace(old, new)
    assert operators(graph) == ["Neg", "Exp"]
    assert graph.outputs[0] is new
    assert (new.name, new.type, new.shape) == ("y", old.type, old.shape)
    (y,) = run(changed, x=np.zeros(3, np.float32))
    assert (y == 1).all()


def test_a_node_stays_while_another_output_is_used() -> None:
    text = "(float[4] x) => (float[2] a, float[2] b) { a, b = Split <num_outputs = 2> (x) }"
    graph = model(text).graph
    replace(graph.outputs[0], Tape(graph, "new", before=graph[0]).op("Neg", [graph.inputs[0]]))
    assert operators(graph) == ["Neg", "Split"]
    replace(graph.outputs[1], Tape(graph, "new", before=graph[0]).op("Abs", [graph.inputs[0]]))
    assert operators(graph) == ["Abs", "Neg"] or operators(graph) == ["Neg", "Abs"]


def test_equal_constants_of_a_name_are_one() -> None:
    graph = model(TWO_NODES).graph
    first = constant(graph, [1, 2], "sizes")
    assert constant(graph, [1, 2], "sizes") is first
    other = constant(graph, [1, 3], "sizes")
    assert (first.name, other.name) == ("sizes", "sizes_")
    assert constant(graph, np.array([1, 2], np.int32), "sizes").name == "sizes__"


def test_a_branch_has_the_recorded_nodes() -> None:
    graph = model(TWO_NODES).graph
    tape = Tape(graph, "branch")
    branch = tape.branch([tape.op("Exp", [graph.inputs[0]])])
    assert operators(branch) == ["Exp"] and operators(graph) == ["Neg", "Abs"]


def test_matmuls_are_those_with_a_constant_matrix() -> None:
    text = "(float[N,4] x, float[4,4] z) => (float[N,4] y) { a = MatMul (x, w)  y = MatMul (a, z) }"
    graph = model(text, w=normal(4, 4)).graph
    (only,) = tools.matmuls(graph)
    assert only.node is graph[0] and only.x is graph.inputs[0] and only.layers == ()
    with pytest.raises(ValueError, match="is not a constant"):
        tools.array(graph.inputs[1])
