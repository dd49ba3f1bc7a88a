"""Models as ONNX: for scoring without TensorFlow."""

import importlib
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.engines.onnx import ROWS_PER_CALL
from nnbuild.errors import ContractError
from nnbuild.models.architectures import Shape
from nnbuild.runtime.tensorflow import quiet, tf
from nnbuild.store.filesystem import write_bytes

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


PIXELS, LOGITS, BATCH = "pixels", "logits", "batch"
_CACHE = (
    3 * 2**19
)  # bytes that the widest layer may take: about what one processor's own cache holds
_MOST_ROWS = 4096


def export_onnx(model: Any, path: Path, shape: Shape) -> None:
    """Write a model as ONNX: `pixels`, uint8 of shape (batch, *shape), in; `logits`, float32 (batch, classes), out.

    The model is exported as it scores, with `training=False`. Equal models have equal files: the numbers
    that the converter counts up from call to call are taken out again.

    Args:
        model: pixels in, logits out.
        path: of the file, which is written whole or not at all.
        shape: of an image: height and width in pixels, and channels.

    Raises:
        ContractError: ONNX has no operation for one of the model's.
        Exception: whatever the converter meets, of a layer that it cannot express.
    """
    exported = _converted(model, shape)
    _make_canonical(exported)
    write_bytes(path, exported.SerializeToString(deterministic=True))


def _converted(model: Any, shape: Shape) -> Any:
    """Convert a model to an `onnx.ModelProto` with one input."""
    import onnx
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    pixels = tf.TensorSpec((None, *shape), tf.uint8, name=PIXELS)
    function = tf.function(
        lambda images: tf.cast(model(images, training=False), tf.float32), autograph=False
    )
    failed: Exception | None = None
    with quiet(), warnings.catch_warnings():
        # The converter looks for a name that NumPy has removed.
        warnings.filterwarnings("ignore", r"In the future `np\.object`", FutureWarning)
        _make_converter_ready()
        try:
            traced = function.get_concrete_function(pixels)
            # Named as the only input, the pixels are. A tensor that a layer holds, as `Normalization` does, becomes a
            # constant like the weights; the converter's own way from a function makes it an input.
            names = {
                "input_names": [traced.inputs[0].name],
                "output_names": [traced.outputs[0].name],
            }
            frozen = tf2onnx.tf_loader.from_function(traced, **names)
            exported, _ = tf2onnx.convert.from_graph_def(
                frozen, custom_op_handlers={"Erfc": (_erfc, [])}, **names
            )
        except Exception as error:  # noqa: BLE001  (raised below, where what the converter printed is gone)
            failed = error
    if failed is not None:
        raise failed
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
    """Express 1 - erf(x), which TensorFlow's exact GELU uses, as ONNX can: it has no operation of its own for it."""
    kind = graph.get_dtype(node.output[0])
    shape = graph.get_shape(node.output[0])
    one = graph.make_const(f"{node.name}_one", np.ones((), np.float32))
    erf = graph.make_node("Erf", node.input, shapes=[shape], dtypes=[kind])
    inputs = [one.output[0], erf.output[0]]
    graph.remove_node(node.name)
    graph.make_node("Sub", inputs, outputs=node.output, shapes=[shape], dtypes=[kind])


def _make_canonical(model: Any) -> None:
    import onnx

    fold_rescaling(model)
    graph = model.graph
    names = {graph.input[0].name: PIXELS, graph.output[0].name: LOGITS}
    for holder, field in _names(graph):
        given = getattr(holder, field)
        values = [given] if isinstance(given, str) else given
        renamed = [
            names.setdefault(each, f"value_{len(names)}") if each else each for each in values
        ]
        if isinstance(given, str):
            setattr(holder, field, renamed[0])
        else:
            given[:] = renamed
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
    onnx.helper.set_model_props(model, {ROWS_PER_CALL: str(rows)})


def _rows_per_call(graph: Any) -> int:
    """How many images to run at once: a power of two, so that the widest layer's values stay in the cache."""
    sizes = [
        [each.dim_value for each in value.type.tensor_type.shape.dim[1:]]
        for value in graph.value_info
    ]
    widest = max((math.prod(size) for size in sizes if size), default=0)
    fitting = max(_CACHE / (4 * max(widest, 1)), 1)
    return min(_MOST_ROWS, 1 << round(math.log2(fitting)))


def _names(graph: Any) -> Iterator[tuple[Any, str]]:
    """Where a graph, and the graphs inside its nodes, name a value: the holder and its field."""
    for value in graph.input:
        yield value, "name"
    for node in graph.node:
        yield node, "input"
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)
        yield node, "output"
    for value in (*graph.initializer, *graph.output):
        yield value, "name"
