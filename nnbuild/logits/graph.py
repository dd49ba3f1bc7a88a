"""How a model ends, read from its graph: whatever it was written with, softmax is the operation `Softmax` there."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nnbuild.runtime.tensorflow import tf

# The head may be looked at through these: they move numbers about, or combine them linearly.
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
_PASSED = _MOVING | _COMBINING
_FIRST_PASSED = {"FusedBatchNormV3"}  # only its first input is an image's; at scoring it is linear
_DIVISIONS = {"RealDiv", "Div", "DivNoNan", "Xdivy"}

# What a head must not be. LogSoftmax is no such thing: log-probabilities are logits, if logits lie behind it.
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
# What comes out of these does not depend on the values of what goes in.
_SHAPE_ONLY = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"}

# The functions that an operation calls, and how many of its inputs come before their arguments.
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
    """An operation that the head must not be, and the name of the place in the graph."""

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
    """Find the first operation, seen from the model's output, that makes it something else than logits.

    The search follows only what depends on the images. A temperature that was learnt, or the statistics
    of batch norm, are constants at scoring, however they are computed.

    Args:
        function: Concrete function of a model, see `traced`.

    Returns:
        The operation, or None if the model ends linearly.
    """
    definition = function.graph.as_graph_def()
    functions = {each.signature.name: each for each in definition.library.function}
    body = _Body(definition.node, {_origin(function.inputs[0].name)[0]})
    return _search(body, [output.name for output in function.outputs], functions)


class _Body:
    """The operations of a graph, or of a function within it, and which of them depend on the images.

    Args:
        nodes: All operations.
        sources: Names of the operations or arguments that the images come in by.
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
        pending.extend(each for each in _passed(node, output) if body.depends(each))
    return None


def _passed(node: Any, output: int) -> list[str]:
    """The inputs through which the search goes on."""
    inputs = _inputs(node)
    if node.op in _PASSED:
        return inputs
    if node.op in _FIRST_PASSED:
        return inputs[:1]
    if node.op == "IdentityN":  # around an operation with a gradient of its own, as swish has
        return [inputs[output]]
    return []


def _called(
    node: Any, output: int, body: _Body, functions: Mapping[str, Any]
) -> Iterator[tuple[_Body, str]]:
    """Yield the functions that an operation calls, each with what it returns as that output."""
    attributes, skipped = _CALLS.get(node.op, ((), 0))
    depends = [body.depends(each) for each in _inputs(node)[skipped:]]
    if node.op in _LOOPS:  # from one turn to the next anything may come to depend on anything
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
    """The node and the number of its output, of `node:output:0`, `node:0` or `node`."""
    name, *rest = end.split(":")
    return name, int(rest[-1]) if rest else 0
