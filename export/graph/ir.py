"""How every pass reads and changes a graph.

To read: :func:`matmuls`, :func:`producer`, :func:`inputs`, :func:`array`. To change: record new
operators on a :class:`Tape`, which names them and puts them into the graph, then :func:`replace` an
old value by a new one. A pass handles values, and nodes only where it searches for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

Elements = NDArray[Any] | np.generic | Sequence[int]
"""What a constant is made of; integers become int64."""
MICROSOFT = "com.microsoft"
"""Domain of the operators that only ONNX Runtime has."""
LAYERS = "layers"
"""Key of a weight's metadata: names of the layers whose weights it holds."""


class Tape:
    """New operators at one place of a graph: values in, values out.

    The n-th node is called ``<name>_<n>_<operator>``, its outputs ``<node>_<index>``, and a
    constant ``<name>_<what it is>``. Without ``before`` and ``after`` the nodes become the body of
    a :meth:`branch`; their constants belong to the graph around it.
    """

    def __init__(
        self,
        graph: ir.Graph,
        name: str,
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
    ) -> None:
        """Begin to record.

        Args:
            graph: Changed in place.
            name: Start of all new names.
            before: Insert new nodes before this one.
            after: Insert new nodes after this one, in the order in which they are recorded.
        """
        from onnx_ir.tape import Tape as Recorder

        self.graph, self.name = graph, name
        self._recorder = Recorder()
        self._before, self._after = before, after

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        like: ir.Value | None = None,
    ) -> ir.Value:
        """Add an operator with one output, and return the output.

        Args:
            kind: Name of the operator.
            inputs: Its inputs; ``None`` where an optional one is left out.
            attributes: Its attributes.
            domain: Of the operator; empty for the standard ones.
            like: A value of the same type and shape, where they are known.
        """
        (value,) = self.ops(kind, inputs, attributes, outputs=1, domain=domain)
        if like is not None:
            value.type, value.shape = like.type, like.shape
        return value

    def ops(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Add an operator with several outputs, and return them; arguments as :meth:`op`."""
        values = self._recorder.op_multi_out(
            kind, inputs, attributes, num_outputs=outputs, domain=domain
        )
        node = self._recorder.nodes[-1]
        node.name = f"{self.name}_{len(self._recorder.nodes)}_{kind}"
        for index, value in enumerate(values):
            value.name = f"{node.name}_{index}"
        if self._before is not None:
            self.graph.insert_before(self._before, node)
        elif self._after is not None:
            self.graph.insert_after(self._after, node)
            self._after = node
        return values

    def cast(self, x: ir.Value, dtype: str | ir.DataType) -> ir.Value:
        """Add a Cast to a type, also by name, such as ``FLOAT``."""
        import onnx_ir as ir

        return self.op("Cast", [x], {"to": ir.DataType[dtype] if isinstance(dtype, str) else dtype})

    def constant(self, values: Elements, what: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Add a constant called ``<name>_<what>``; arguments as :func:`constant`."""
        return constant(self.graph, values, f"{self.name}_{what}", dtype)

    def branch(self, outputs: Sequence[ir.Value]) -> ir.Graph:
        """Return the recorded nodes as a branch of an If, with these of their values as outputs."""
        import onnx_ir as ir

        return ir.Graph([], outputs, nodes=self._recorder.nodes, name=self.name)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Replace a value by a new one, which takes over its name, type, shape and uses.

    The node of ``old`` is removed if no output of it is used any more.
    """
    name, node = old.name, old.producer()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}_before"
    new.name, new.type, new.shape = name, old.type, old.shape
    if node is None or node.graph is None:
        return
    if not any(value.uses() or value.is_graph_output() for value in node.outputs):
        node.graph.remove(node, safe=True)


def constant(
    graph: ir.Graph, values: Elements, name: str, dtype: ir.DataType | None = None
) -> ir.Value:
    """Return a constant of the graph, added unless it has the same one by that name.

    Args:
        graph: Changed in place.
        values: Its elements.
        name: Followed by ``_`` while another constant has it.
        dtype: Type of the elements; by default that of ``values``.
    """
    import onnx_ir as ir

    elements = values if isinstance(values, np.ndarray | np.generic) else np.array(values, np.int64)
    tensor = ir.tensor(np.asarray(elements), dtype)
    while (known := graph.initializers.get(name)) is not None:
        if known.const_value is not None and _equal(known.const_value, tensor):
            return known
        name += "_"
    tensor.name = name
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value


def _equal(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    same_form = one.dtype == other.dtype and one.shape == other.shape
    return same_form and one.tobytes() == other.tobytes()


def drop_unused(model: ir.Model) -> None:
    """Drop nodes and constants that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


@dataclass(frozen=True)
class Matmul:
    """A matmul with a constant weight: ``y [..., N] = x [..., K] @ weight [K, N]``."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value

    @property
    def y(self) -> ir.Value:
        """The output."""
        return self.node.outputs[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose weights it holds; empty outside of the decoder's layers."""
        return tuple(self.weight.meta.get(LAYERS, ()))


def matmuls(graph: ir.Graph) -> list[Matmul]:
    """Return every matmul with a constant matrix."""
    return [each for node in graph if (each := matmul(node)) is not None]


def matmul(node: ir.Node | None) -> Matmul | None:
    """Return a node as a matmul with a constant matrix, or ``None`` if it is not one."""
    if node is None or node.op_type != "MatMul" or node.domain != "":
        return None
    x, weight = inputs(node)
    return Matmul(node, x, weight) if is_constant(weight) and rank(weight) == 2 else None


def nodes(graph: ir.Graph, kind: str) -> Iterator[ir.Node]:
    """Yield the nodes of an operator, as they are when the first is requested."""
    yield from [node for node in graph if node.op_type == kind]


def inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node, without optional ones that are left out."""
    return [value for value in node.inputs if value is not None]


def producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """Return the node that computes a value, or ``None`` if there is none of these operators."""
    node = None if value is None else value.producer()
    return node if node is not None and (not kinds or node.op_type in kinds) else None


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a value, or ``None`` unless exactly one input does."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def named(graph: ir.Graph, name: str) -> ir.Value:
    """Return the value of a name that a node of the graph computes."""
    return next(out for node in graph for out in node.outputs if out.name == name)


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is a constant."""
    return value is not None and value.const_value is not None


def array(value: ir.Value | None) -> NDArray[Any]:
    """Return the elements of a constant.

    Raises:
        ValueError: The value is not a constant.
    """
    if value is None or value.const_value is None:
        raise ValueError(f"{value} is not a constant")
    return value.const_value.numpy()


def rank(value: ir.Value) -> int | None:
    """Return the number of axes of a value, or ``None`` if it is not known."""
    return None if value.shape is None else len(value.shape)
