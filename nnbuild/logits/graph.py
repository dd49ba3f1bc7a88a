"""Find the operation that a model ends in, from its graph, where every softmax is a `Softmax`."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nnbuild.runtime.tensorflow import tf

# The search continues through these: they move numbers, or combine them linearly.
_MOVING = {
    "Identity",
    "Cast",
    "Reshape",
    "Squeeze",
    "ExpandDims",
    "Transpose",
    "StopGradient",
    "PreventGradient",
    "EnsureShape",
    "StridedSlice",
    "Slice",
    "GatherV2",
    "GatherNd",
    "ReverseV2",
    "Roll",
    "Tile",
    "BroadcastTo",
    "ConcatV2",
    "Pack",
    "Unpack",
    "Split",
    "Pad",
    "PadV2",
    "MirrorPad",
    "TensorListFromTensor",
    "TensorListGetItem",
    "TensorListSetItem",
    "TensorListStack",
}
_COMBINING = {
    "Mean",
    "Sum",
    "Max",
    "Min",
    "AvgPool",
    "MaxPool",
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
    "LogSoftmax",
}
_TRANSPARENT = _MOVING | _COMBINING
_FIRST_TRANSPARENT = {"FusedBatchNormV3"}  # linear at scoring, in its first input
_DIVISIONS = {"RealDiv", "Div", "DivNoNan", "Xdivy"}

# Not allowed as a head. LogSoftmax is: log-probabilities of logits are logits.
_NONLINEAR = {
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
    "Exp",
    "Expm1",
    "Erf",
    "Erfc",
    "Square",
    "SquaredDifference",
    "Pow",
    "Sqrt",
    "Rsqrt",
    "Reciprocal",
    "Inv",
    "Abs",
    "Sign",
    "Round",
    "ArgMax",
    "OneHot",
}
# Their outputs do not depend on the values of their inputs.
_SHAPE_ONLY = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"}

# Attributes with the functions that an operation calls, and its number of inputs before theirs.
_CALLS = {
    "PartitionedCall": (("f",), 0),
    "StatefulPartitionedCall": (("f",), 0),
    "If": (("then_branch", "else_branch"), 1),
    "StatelessIf": (("then_branch", "else_branch"), 1),
    "Case": (("branches",), 1),
    "StatelessCase": (("branches",), 1),
    "While": (("body",), 0),
    "StatelessWhile": (("body",), 0),
}
_LOOPS = {"While", "StatelessWhile"}


class Nonlinear(NamedTuple):
    """A nonlinear operation at the end of a model, and its name in the graph."""

    operation: str
    place: str


def traced(model: Any, image_shape: tuple[int, ...]) -> Any:
    """Trace a model as it scores.

    Args:
        model: A built Keras model of any kind.
        image_shape: Height, width and channels.

    Returns:
        TensorFlow's concrete function of a batch of images.
    """
    kind = model.inputs[0].dtype if getattr(model, "inputs", None) else "uint8"
    function = tf.function(lambda images: model(images, training=False))
    return function.get_concrete_function(tf.TensorSpec((None, *image_shape), kind))


def nonlinear_end(function: Any) -> Nonlinear | None:
    """Find the first operation, from the output backwards, that makes the output not logits.

    The search follows only values that depend on the images. A learnt temperature or the statistics
    of batch normalisation are constants at scoring.

    Args:
        function: Concrete function of a model, see `traced`.

    Returns:
        The operation; None if the end of the model is linear.
    """
    definition = function.graph.as_graph_def()
    functions = {each.signature.name: each for each in definition.library.function}
    body = _Body(definition.node, {_origin(function.inputs[0].name)[0]})
    return _search(body, [output.name for output in function.outputs], functions)


class _Body:
    """The operations of a graph, or of a function in it, and which of them depend on the images.

    Args:
        nodes: All operations.
        sources: Names of the operations or arguments that receive the images.
    """

    def __init__(self, nodes: Iterable[Any], sources: Collection[str]) -> None:
        self.nodes = {node.name: node for node in nodes}
        users: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for name in _inputs(node):
                users.setdefault(_origin(name)[0], []).append(node.name)
        self._dependent, pending = set(sources), list(sources)
        while pending:
            for name in users.get(pending.pop(), ()):
                if name not in self._dependent and self.nodes[name].op not in _SHAPE_ONLY:
                    self._dependent.add(name)
                    pending.append(name)

    def depends(self, end: str) -> bool:
        return _origin(end)[0] in self._dependent


def _search(body: _Body, ends: Iterable[str], functions: Mapping[str, Any]) -> Nonlinear | None:
    pending, seen = [end for end in ends if body.depends(end)], set()
    while pending:
        name, output = _origin(pending.pop())
        node = body.nodes.get(name)
        if node is None or (name, output) in seen:
            continue
        seen.add((name, output))
        divides = node.op in _DIVISIONS and body.depends(_inputs(node)[1])
        if node.op in _NONLINEAR or divides:
            return Nonlinear(node.op, node.name)
        for inner, end in _called(node, output, body, functions):
            if found := _search(inner, [end], functions):
                return found
        pending.extend(each for each in _continued(node, output) if body.depends(each))
    return None


def _continued(node: Any, output: int) -> list[str]:
    """Return the inputs through which the search continues."""
    inputs = _inputs(node)
    if node.op in _TRANSPARENT:
        return inputs
    if node.op in _FIRST_TRANSPARENT:
        return inputs[:1]
    if node.op == "IdentityN":  # around an operation with a custom gradient, such as swish
        return [inputs[output]]
    return []


def _called(
    node: Any, output: int, body: _Body, functions: Mapping[str, Any]
) -> Iterator[tuple[_Body, str]]:
    """Yield the functions that an operation calls, each with its result for an output."""
    attributes, skipped = _CALLS.get(node.op, ((), 0))
    depends = [body.depends(each) for each in _inputs(node)[skipped:]]
    if node.op in _LOOPS:  # over the iterations any value may come to depend on any other
        depends = [any(depends)] * len(depends)
    for attribute in attributes:
        value = node.attr[attribute]
        for called in value.list.func or [value.func]:
            function = functions[called.name]
            arguments = (each.name for each in function.signature.input_arg)
            sources = {name for name, is_one in zip(arguments, depends, strict=False) if is_one}
            result = function.signature.output_arg[output].name
            yield _Body(function.node_def, sources), function.ret[result]


def _inputs(node: Any) -> list[str]:
    return [each for each in node.input if not each.startswith("^")]


def _origin(end: str) -> tuple[str, int]:
    """Split `node:output:0`, `node:0` or `node` into the node and the number of its output."""
    name, *rest = end.split(":")
    return name, int(rest[-1]) if rest else 0
