"""Models as ONNX: for scoring without TensorFlow."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnbuild.backend import keras, quiet
from nnbuild.engines.onnx import ROWS_PER_CALL
from nnbuild.models.folding import fold_rescaling
from nnbuild.models.networks import Shape
from nnbuild.store.files import written

PIXELS, LOGITS, BATCH = "pixels", "logits", "batch"
_CACHE = (
    3 * 2**19
)  # bytes that the widest layer may take: about what one processor's own cache holds
_MOST_ROWS = 4096


def export_onnx(model: Any, path: Path, shape: Shape) -> None:
    """Write a model as ONNX: `pixels`, uint8 of shape (batch, *shape), in; `logits`, float32 (batch, classes), out.

    Equal models have equal files: the numbers that the converter counts up from call to call are taken out again.

    Args:
        model: pixels in, logits out.
        path: of the file, which is written whole or not at all.
        shape: of an image: height and width in pixels, and channels.

    Raises:
        Exception: whatever the converter meets, of a layer that ONNX cannot express.
    """
    signature = [keras.InputSpec(shape=(None, *shape), dtype="uint8", name=PIXELS)]
    with written(path) as aside, quiet(), warnings.catch_warnings():
        # The converter looks for a name that NumPy has removed.
        warnings.filterwarnings("ignore", r"In the future `np\.object`", FutureWarning)
        model.export(str(aside), format="onnx", verbose=False, input_signature=signature)
        _make_canonical(aside)


def _make_canonical(path: Path) -> None:
    import onnx

    model = onnx.load(path)
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
    path.write_bytes(model.SerializeToString(deterministic=True))


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
