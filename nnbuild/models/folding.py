"""Rescaling folded into the weights behind it: ONNX Runtime spends most of a dense network's time on it otherwise."""

from collections.abc import Iterator
from typing import Any

_SHAPE_ONLY = {"Reshape", "Transpose"}
_LINEAR = {"MatMul", "Conv"}


def fold_rescaling(model: Any) -> None:
    """Multiply the first layer's weights by the factor of the pixels; modifies the ONNX model in place.

    pixels × factor, moved into another shape and multiplied by weights, is pixels multiplied by weights × factor. It
    is done where nothing else uses the rescaled pixels, and their offset is 0; any other graph is left as it is.

    Args:
        model: an `onnx.ModelProto`.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def constant(name: str) -> Any:
        return numpy_helper.to_array(weights[name]) if name in weights else None

    scaling = next((node for node in graph.node if node.op_type == "Mul"), None)
    if scaling is None or (factor := constant(scaling.input[1])) is None or factor.size != 1:
        return
    passed = [scaling]
    while len(found := users.get(passed[-1].output[0], [])) == 1:
        node = found[0]
        offset = constant(node.input[1]) if node.op_type == "Add" else None
        if node.op_type in _LINEAR:
            kernel = node.input[1]
            if (
                node.input[0] == passed[-1].output[0]
                and kernel in weights
                and len(users[kernel]) == 1
            ):
                values = constant(kernel)
                scaled = (values * factor.reshape(())).astype(values.dtype)
                weights[kernel].CopyFrom(numpy_helper.from_array(scaled, kernel))
                _bypass(graph, [each for each in passed if each.op_type not in _SHAPE_ONLY], users)
            return
        if node.op_type not in _SHAPE_ONLY and (offset is None or offset.size != 1 or offset.any()):
            return
        passed.append(node)


def _bypass(graph: Any, nodes: list[Any], users: dict[str, list[Any]]) -> None:
    """Let the users of each node's output take its first input instead."""
    for node in nodes:
        for user in users[node.output[0]]:
            for place, name in enumerate(user.input):
                if name == node.output[0]:
                    user.input[place] = node.input[0]
        graph.node.remove(node)
    used = set(_used(graph))
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _used(graph: Any) -> Iterator[str]:
    """Yield the names that a graph's nodes take, also those in the graphs within them."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _used(inner)
