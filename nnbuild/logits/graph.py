"""How a model ends, read from its graph: whatever it was written with, softmax is the operation `Softmax` there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nnbuild.backend import tf

# The head may be looked at through these: they move numbers about, or combine them linearly.
_PASSED = {
    *(
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "ExpandDims",
        "Transpose",
        "StopGradient",
        "EnsureShape",
    ),
    *(
        "StridedSlice",
        "ConcatV2",
        "Pack",
        "Unpack",
        "Split",
        "Mean",
        "Sum",
        "AvgPool",
        "Pad",
        "PreventGradient",
    ),
    "LogSoftmax",
    *(
        "AddV2",
        "Add",
        "AddN",
        "Sub",
        "Mul",
        "RealDiv",
        "Neg",
        "BiasAdd",
        "Select",
        "SelectV2",
        "Minimum",
        "Maximum",
    ),
}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}

# What a head must not be. LogSoftmax is no such thing: log-probabilities are logits, if logits lie behind it.
_NONLINEAR = {
    *(
        "Softmax",
        "Sigmoid",
        "Tanh",
        "Relu",
        "Relu6",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Softplus",
        "Softsign",
    ),
    *(
        "Exp",
        "Expm1",
        "Erf",
        "Erfc",
        "Square",
        "Sqrt",
        "Rsqrt",
        "Abs",
        "Sign",
        "Round",
        "ArgMax",
        "OneHot",
    ),
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
    graph = _traced(model, image_shape).graph
    definition = graph.as_graph_def()
    functions = {each.signature.name: each for each in definition.library.function}
    nodes = {node.name: node for node in definition.node}
    return _search(nodes, [output.name for output in graph.outputs], functions)


def output_shapes(model: Any, image_shape: tuple[int, ...]) -> list[tuple[int | None, ...]]:
    """The shape of each output of a built Keras model, None for the number of images."""
    if getattr(model, "outputs", None):
        return [tuple(output.shape) for output in model.outputs]
    return [tuple(output.shape) for output in _traced(model, image_shape).outputs]


def _traced(model: Any, image_shape: tuple[int, ...]) -> Any:
    kind = model.inputs[0].dtype if getattr(model, "inputs", None) else "uint8"
    function = tf.function(lambda images: model(images, training=False))
    return function.get_concrete_function(tf.TensorSpec((None, *image_shape), kind))


def _search(
    nodes: Mapping[str, Any], ends: list[str], functions: Mapping[str, Any]
) -> Nonlinear | None:
    pending, seen = list(ends), set()
    while pending:
        end = pending.pop()
        name, output = _origin(end)
        node = nodes.get(name)
        if node is None or (name, output) in seen:
            continue
        seen.add((name, output))
        if node.op in _NONLINEAR:
            return Nonlinear(node.op, node.name)
        if node.op in _CALLS:
            body = functions[node.attr["f"].func.name]
            found = _search(
                {each.name: each for each in body.node_def}, list(body.ret.values()), functions
            )
            if found:
                return found
        if node.op == "IdentityN":  # around an operation with a gradient of its own, as swish has
            pending.append(node.input[output])
        if node.op in _PASSED:
            pending.extend(each for each in node.input if not each.startswith("^"))
    return None


def _origin(end: str) -> tuple[str, int]:
    """The node and the number of its output, of `node:output:0`, `node:0` or `node`."""
    name, *rest = end.split(":")
    return name, int(rest[-1]) if rest else 0
