"""Check an ONNX file before ONNX Runtime opens it: complete, and not a decompression bomb."""

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nnbuild.data.archives import allowance
from nnbuild.errors import ContractError, one_line

if TYPE_CHECKING:
    import onnx

_MAX_BYTES = 2**31  # of a protobuf message
_MAX_VALUE_BYTES = 2**32  # of a value that depends on the images
_MAX_NODES, _MAX_FUNCTIONS = 1_000_000, 500
_MAX_SHAPE_BYTES = 1024  # of a constant that can be a shape
_MAX_SHOWN = 80


def refuse_external_data(content: bytes, name: str) -> None:
    """Refuse a model with tensors in other files; those files are not read.

    The digest of the model covers only its own bytes, and ONNX Runtime looks for the other files in
    the current folder.

    Args:
        content: Content of the file.
        name: Name of the file for messages.

    Raises:
        ContractError: A tensor is stored elsewhere, or the file cannot be parsed.
    """
    if b"location" in content:  # the key that every reference to another file contains
        _refuse_external_data(_parsed(content, name), name)


def check_file(content: bytes, name: str) -> None:
    """Refuse a model of unknown origin that is incomplete or a decompression bomb.

    Args:
        content: Content of the file.
        name: Name of the file for messages.

    Raises:
        ContractError: It is not an ONNX model, has tensors in other files, or declares constants
            that are far larger than the file.
    """
    model = _parsed(content, name)
    _refuse_external_data(model, name)
    _require_bounded(model, allowance(len(content)), name)


def _parsed(content: bytes, name: str) -> "onnx.ModelProto":
    import onnx

    if len(content) >= _MAX_BYTES:
        raise ContractError(
            f"{name} has {len(content)} bytes, an ONNX file has less than {_MAX_BYTES}; "
            "give a smaller network"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # the class depends on how protobuf was built
        raise ContractError(
            f"{name} is not an ONNX model ({one_line(error)[:_MAX_SHOWN]}); give a .onnx file"
        ) from error
    return model


def _refuse_external_data(model: Any, name: str) -> None:
    for tensor in _tensors(model):
        if tensor.data_location != tensor.EXTERNAL and not tensor.external_data:
            continue
        place = next((each.value for each in tensor.external_data if each.key == "location"), "?")
        raise ContractError(
            f"{name} has its weights in another file ({place[:_MAX_SHOWN]!r}), which its digest "
            "does not cover; put them into the file by onnx.save_model(onnx.load('old.onnx'), "
            "'new.onnx'), and give the new file and its digest"
        )


def _require_bounded(model: Any, limit: int, name: str) -> None:
    constants = sum(map(_tensor_bytes, _tensors(model))) + sum(map(_sparse_bytes, _sparse(model)))
    largest = 0
    for body, names in _bodies(model):
        for value, is_constant in _values(body, names):
            constants += _value_bytes(value) if is_constant else 0
            largest = max(largest, _value_bytes(value))
    if constants > limit:
        raise ContractError(
            f"{name} declares constants of {constants} bytes, expected at most {limit} for a file "
            "of its size; export it with weights that are stored as they are"
        )
    if largest > _MAX_VALUE_BYTES:
        raise ContractError(
            f"{name} computes a value of {largest} bytes, expected at most {_MAX_VALUE_BYTES}; "
            "export it with a smaller batch"
        )
    if (nodes := _inlined_nodes(model)) > _MAX_NODES:
        raise ContractError(
            f"{name} has functions that expand to {nodes} nodes, expected at most {_MAX_NODES}; "
            "export a smaller network"
        )


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every dense tensor of a model, also in subgraphs and functions."""
    for graph in _graphs(model):
        yield from graph.initializer
    for attribute in _attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for sparse in _sparse(model):
        yield from (sparse.values, sparse.indices)


def _sparse(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.sparse_initializer
    for attribute in _attributes(model):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def _graphs(model: Any) -> Iterator[Any]:
    yield from _main_graphs(model)
    for attribute in _attributes(model):
        yield from _subgraphs(attribute)


def _main_graphs(model: Any) -> list[Any]:
    trained = [[each.initialization, each.algorithm] for each in model.training_info]
    return [model.graph, *(graph for graphs in trained for graph in graphs)]


def _attributes(model: Any) -> Iterator[Any]:
    """Yield every attribute of every node, and the default attributes of functions."""
    for function in model.functions:
        yield from function.attribute_proto
    pending = [*_main_graphs(model), *model.functions]
    while pending:
        for node in pending.pop().node:
            for attribute in node.attribute:
                yield attribute
                pending += _subgraphs(attribute)


def _subgraphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _bodies(model: Any) -> Iterator[tuple[Any, set[str]]]:
    """Yield each graph and function as a separate graph, with the names of its constants."""
    import onnx

    outer = [each for each in model.graph.initializer if _tensor_bytes(each) <= _MAX_SHAPE_BYTES]
    for body in [*_graphs(model), *model.functions]:
        alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        graph = alone.graph
        graph.node.extend(body.node)
        own = []
        if isinstance(body, onnx.GraphProto):
            graph.input.extend(body.input)
            graph.output.extend(body.output)
            own = list(body.initializer)
        constants = {each.name: each for each in [*outer, *own]}
        for each in constants.values():  # shapes are computed from small constants only
            if _tensor_bytes(each) <= _MAX_SHAPE_BYTES:
                graph.initializer.append(each)
            else:
                kind = onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims)
                graph.value_info.append(kind)
        yield _with_shapes(alone), set(constants)


def _with_shapes(model: Any) -> Any:
    import onnx

    with suppress(Exception):  # ONNX Runtime reports what is invalid
        # Without `data_prop`, which computes constants of any size.
        return onnx.shape_inference.infer_shapes(model).graph
    return model.graph


def _values(graph: Any, constants: set[str]) -> Iterator[tuple[Any, bool]]:
    """Yield the typed results of a graph, and whether they are independent of the images."""
    known, results = set(constants), set()
    for node in graph.node:
        results |= set(node.output)
        if all(not each or each in known for each in node.input):
            known |= set(node.output)
    for value in (*graph.value_info, *graph.output):
        if value.name in results:
            yield value, value.name in known


def _inlined_nodes(model: Any) -> int:
    """Return the number of nodes with every function replaced by its body."""
    bodies = {(each.domain, each.name): each for each in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(body: Any, depth: int) -> int:
        if depth > len(bodies):  # a function that calls itself
            return _MAX_NODES + 1
        total, pending = 0, [body]
        while pending:
            for node in pending.pop().node:
                key = (node.domain, node.op_type)
                if key in bodies and key not in counts:
                    counts[key] = count(bodies[key], depth + 1)
                total = min(total + counts.get(key, 1), _MAX_NODES + 1)
                pending += [each for one in node.attribute for each in _subgraphs(one)]
        return total

    return count(model.graph, 0) if len(bodies) < _MAX_FUNCTIONS else _MAX_NODES + 1


def _tensor_bytes(tensor: Any) -> int:
    return _bytes(tensor.dims, tensor.data_type)


def _sparse_bytes(sparse: Any) -> int:
    return _bytes(sparse.dims, sparse.values.data_type)


def _value_bytes(value: Any) -> int:
    kind = value.type.tensor_type
    return _bytes([each.dim_value for each in kind.shape.dim], kind.elem_type)


def _bytes(sizes: Any, kind: int) -> int:
    """Return the memory of a tensor in bytes; 0 if its type or a size is unknown."""
    import onnx

    if not sizes or min(sizes) <= 0:
        return 0
    try:
        itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError, ValueError):
        return 0
    return itemsize * math.prod(int(each) for each in sizes)
