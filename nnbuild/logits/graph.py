"""How a model ends, read from its graph: whatever it was written with, softmax is the operation `Softmax` there."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nnbuild.backend import tf

# The head may be looked at through these: they move numbers about, or combine them linearly.
_PASSED = {
    *("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose", "StopGradient", "EnsureShape"),
    *("StridedSlice", "ConcatV2", "Pack", "Unpack", "Split", "Mean", "Sum", "AvgPool", "Pad", "PreventGradient"),
    *("AddV2", "Add", "AddN", "Sub", "Mul", "RealDiv", "Neg", "BiasAdd", "Select", "SelectV2", "Minimum", "Maximum"),
}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}

# What a head must not be. LogSoftmax is missing on purpose: log-probabilities are logits.
_NONLINEAR = {
    *("Softmax", "Sigmoid", "Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign"),
    *("Exp", "Expm1", "Erf", "Erfc", "Square", "Sqrt", "Rsqrt", "Abs", "Sign", "Round", "ArgMax", "OneHot"),
}


class Nonlinear(NamedTuple):
    """An operation that the head must not be, and the name of the place in the graph."""

    operation: str
    place: str


def nonlinear_end(model: Any, image_shape: tuple[int, ...]) -> Nonlinear | None:
    """The first operation, seen from the model's output, that makes it something else than logits.

    Args:
        model: a built Keras model of any kind.
        image_shape: height, width and channels.

    Returns:
        The operation, or None if the model ends linearly.
    """
    kind = model.inputs[0].dtype if getattr(model, "inputs", None) else "uint8"
    function = tf.function(lambda images: model(images, training=False))
    graph = function.get_concrete_function(tf.TensorSpec((None, *image_shape), kind)).graph
    definition = graph.as_graph_def()
    functions = {each.signature.name: each for each in definition.library.function}
    nodes = {node.name: node for node in definition.node}
    return _search(nodes, [output.op.name for output in graph.outputs], functions)


def _search(nodes: Mapping[str, Any], ends: list[str], functions: Mapping[str, Any]) -> Nonlinear | None:
    pending, seen = list(ends), set()
    while pending:
        name = pending.pop()
        node = nodes.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op in _NONLINEAR:
            return Nonlinear(node.op, node.name)
        if node.op in _CALLS:
            body = functions[node.attr["f"].func.name]
            found = _search({each.name: each for each in body.node_def}, list(_origins(body.ret.values())), functions)
            if found:
                return found
        if node.op in _PASSED:
            pending.extend(_origins(node.input))
    return None


def _origins(inputs: Any) -> Iterator[str]:
    """The names of the nodes that inputs come from: `node:output:0`, `node:0`, `node` or `^node`."""
    for each in inputs:
        if not each.startswith("^"):
            yield each.split(":")[0]
