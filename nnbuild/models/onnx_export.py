"""Export a model to ONNX, for scoring without TensorFlow."""

import importlib
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.preprocessing import METADATA_KEY
from nnbuild.engines.onnx import ROWS_PER_CALL
from nnbuild.errors import Caught, ContractError
from nnbuild.models.architectures import Shape
from nnbuild.runtime.tensorflow import keras, quiet, tf
from nnbuild.store.filesystem import write_bytes

if TYPE_CHECKING:
    import onnx

PIXELS, LOGITS, BATCH = "pixels", "logits", "batch"
_CACHE = 3 * 2**19  # bytes for the widest layer: about the size of one processor's own cache
_MAX_ROWS = 4096
_SHAPE_ONLY = {"Reshape", "Transpose"}
_LINEAR = {"MatMul", "Conv"}


def export_onnx(
    model: keras.Model,
    path: Path,
    shape: Shape,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as ONNX.

    Its input `pixels` is uint8 of shape (batch, *shape), its output `logits` float32 of shape
    (batch, classes). The model is exported as it scores, with `training=False`. Equal models have
    equal files: the numbers that the converter counts up from call to call are removed.

    Args:
        model: Model from pixels to logits.
        path: Path of the file, which is written atomically.
        shape: Height and width of an image in pixels, and number of channels.
        preprocessing: Settings by which pictures become the model's images, for its metadata.

    Raises:
        ContractError: ONNX has no operation for one of the model.
        Exception: The converter cannot express a layer.
    """
    exported = _convert(model, shape)
    _make_canonical(exported, preprocessing)
    write_bytes(path, exported.SerializeToString(deterministic=True))


def _convert(model: keras.Model, shape: Shape) -> "onnx.ModelProto":
    """Convert a model to an ONNX model with one input."""
    import onnx
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    pixels = tf.TensorSpec((None, *shape), tf.uint8, name=PIXELS)
    function = tf.function(
        lambda images: tf.cast(model(images, training=False), tf.float32), autograph=False
    )
    # An error is raised after the block, without its output.
    with quiet(), warnings.catch_warnings(), Caught() as caught:
        # The converter looks for a name that NumPy has removed.
        warnings.filterwarnings("ignore", r"In the future `np\.object`", FutureWarning)
        _make_converter_ready()
        traced = function.get_concrete_function(pixels)
        # The pixels are named as the only input. A tensor that a layer holds, as that of
        # `Normalization`, then becomes a constant like the weights; `from_function` of the
        # converter would make it an input.
        names = {
            "input_names": [traced.inputs[0].name],
            "output_names": [traced.outputs[0].name],
        }
        frozen = tf2onnx.tf_loader.from_function(traced, **names)
        exported, _ = tf2onnx.convert.from_graph_def(
            frozen, custom_op_handlers={"Erfc": (_erfc, [])}, **names
        )
    if caught.error is not None:
        raise caught.error
    missing = {
        node.op_type for node in exported.graph.node if not onnx.defs.has(node.op_type, node.domain)
    }
    if missing:
        raise ContractError(f"ONNX has no operation for {', '.join(sorted(missing))}")
    return exported


def _make_converter_ready() -> None:
    """Do what Keras's own export does for the converter under NumPy 2."""
    library: Any = importlib.import_module("keras.src.export.tf2onnx_lib")
    library.patch_tf2onnx()


def _erfc(graph: Any, node: Any, _name: str, _args: Any) -> None:
    """Express 1 - erf(x), which TensorFlow's exact GELU uses and ONNX has no operation for."""
    kind = graph.get_dtype(node.output[0])
    shape = graph.get_shape(node.output[0])
    one = graph.make_const(f"{node.name}_one", np.ones((), np.float32))
    erf = graph.make_node("Erf", node.input, shapes=[shape], dtypes=[kind])
    inputs = [one.output[0], erf.output[0]]
    graph.remove_node(node.name)
    graph.make_node("Sub", inputs, outputs=node.output, shapes=[shape], dtypes=[kind])


def _make_canonical(model: "onnx.ModelProto", preprocessing: Mapping[str, Any] | None) -> None:
    """Fold the rescaling, name all values and nodes by number, and sort the weights."""
    import onnx

    fold_rescaling(model)
    graph = model.graph
    names = {graph.input[0].name: PIXELS, graph.output[0].name: LOGITS}
    for holder, field in _name_fields(graph):
        value = getattr(holder, field)
        old = [value] if isinstance(value, str) else value
        new = [names.setdefault(each, f"value_{len(names)}") if each else each for each in old]
        if isinstance(value, str):
            setattr(holder, field, new[0])
        else:
            value[:] = new
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del graph.value_info[:]
    weights = sorted(graph.initializer, key=lambda each: each.name)
    del graph.initializer[:]
    graph.initializer.extend(weights)
    graph.name, graph.doc_string = LOGITS, ""
    rows = _rows_per_call(onnx.shape_inference.infer_shapes(model).graph)
    properties = {ROWS_PER_CALL: str(rows)}
    if preprocessing is not None:
        properties[METADATA_KEY] = json.dumps(dict(preprocessing))
    onnx.helper.set_model_props(model, properties)


def _rows_per_call(graph: "onnx.GraphProto") -> int:
    """Return how many images to run at once, so that the widest layer's values fit the cache.

    The number is a power of two.
    """
    sizes = [
        [each.dim_value for each in value.type.tensor_type.shape.dim[1:]]
        for value in graph.value_info
    ]
    widest = max((math.prod(size) for size in sizes if size), default=0)
    fitting = max(_CACHE / (4 * max(widest, 1)), 1)
    return min(_MAX_ROWS, 1 << round(math.log2(fitting)))


def _name_fields(graph: "onnx.GraphProto") -> Iterator[tuple[Any, str]]:
    """Yield object and field of each name of a value in a graph, and in the graphs in its nodes."""
    for value in graph.input:
        yield value, "name"
    for node in graph.node:
        yield node, "input"
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _name_fields(inner)
        yield node, "output"
    for value in (*graph.initializer, *graph.output):
        yield value, "name"


def fold_rescaling(model: "onnx.ModelProto") -> None:
    """Fold the factor of the pixels into the first layer's weights; modifies `model` in place.

    (pixels × factor), reshaped and multiplied by weights, is pixels multiplied by (weights ×
    factor). A graph is left unchanged if the rescaled pixels have an offset or several uses.

    Args:
        model: ONNX model.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def constant(name: str) -> NDArray[Any] | None:
        return numpy_helper.to_array(weights[name]) if name in weights else None

    scaling = next((node for node in graph.node if node.op_type == "Mul"), None)
    if scaling is None or (factor := constant(scaling.input[1])) is None or factor.size != 1:
        return
    path = [scaling]
    while len(next_nodes := users.get(path[-1].output[0], [])) == 1:
        node = next_nodes[0]
        offset = constant(node.input[1]) if node.op_type == "Add" else None
        if node.op_type in _LINEAR:
            kernel = node.input[1]
            values = constant(kernel)
            if (
                node.input[0] == path[-1].output[0]
                and values is not None
                and len(users[kernel]) == 1
            ):
                scaled = (values * factor.reshape(())).astype(values.dtype)
                weights[kernel].CopyFrom(numpy_helper.from_array(scaled, kernel))
                _bypass(graph, [each for each in path if each.op_type not in _SHAPE_ONLY], users)
            return
        if node.op_type not in _SHAPE_ONLY and (offset is None or offset.size != 1 or offset.any()):
            return
        path.append(node)


def _bypass(
    graph: "onnx.GraphProto",
    nodes: "list[onnx.NodeProto]",
    users: "dict[str, list[onnx.NodeProto]]",
) -> None:
    """Remove nodes from a graph, and connect the users of their outputs to their first inputs."""
    for node in nodes:
        for user in users[node.output[0]]:
            for position, name in enumerate(user.input):
                if name == node.output[0]:
                    user.input[position] = node.input[0]
        graph.node.remove(node)
    names = set(_input_names(graph))
    used = [each for each in graph.initializer if each.name in names]
    del graph.initializer[:]
    graph.initializer.extend(used)


def _input_names(graph: "onnx.GraphProto") -> Iterator[str]:
    """Yield the names of the inputs of a graph's nodes, and of the graphs in its nodes."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _input_names(inner)
