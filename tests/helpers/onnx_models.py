"""Small ONNX models from 8×8 grayscale images to three logits, valid and hostile."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE, CLASSES = (8, 8, 1), 3
OPSET = helper.make_opsetid("", 17)
WEIGHTS = np.random.default_rng(3).normal(size=(64, CLASSES)).astype(np.float32) / 255
HUGE = np.array([100_000, 100_000], np.int64)

pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", *SHAPE])
logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])


def tensor(values, name, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def dense(end="logits"):
    """Return the nodes and weights of a network without hidden layers."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], [end]),
    ]
    return nodes, [tensor([-1, 64], "flat", np.int64), tensor(WEIGHTS, "weights")]


def model(nodes=None, weights=(), inputs=(pixels,), outputs=(logits,), sparse=(), **options):
    if nodes is None:
        nodes, weights = dense()
    graph = helper.make_graph(
        nodes, "g", list(inputs), list(outputs), list(weights), sparse_initializer=list(sparse)
    )
    options = {"opset_imports": [OPSET], "ir_version": 8} | options
    return helper.make_model(graph, **options)


def plus(name, *nodes, weights=(), **options):
    """Return the dense network plus the sum of a value computed by further nodes."""
    base, own = dense("dense")
    end = [
        helper.make_node("ReduceSum", [name], ["sum"], keepdims=0),
        helper.make_node("Add", ["dense", "sum"], ["logits"]),
    ]
    return model([*base, *nodes, *end], [*own, *weights], **options)


def fixed(batch):
    """Return the dense network with a fixed batch size."""
    given = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, *SHAPE])
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
    return model(inputs=[given], outputs=[made])


def elsewhere(found, location="weights.bin"):
    """Declare that a tensor is stored in another file."""
    found.ClearField("raw_data")
    found.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        found.external_data.add(key=key, value=value)
    return found


def branch(*nodes, weights=()):
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [out], list(weights))


def conditional(body):
    """Return the dense network plus the sum of the output of a branch."""
    node = helper.make_node("If", ["yes"], ["extra"], then_branch=body, else_branch=body)
    return plus("extra", node, weights=[tensor([True], "yes", np.bool_)])


def with_external_data():
    """Return models with a tensor in another file, by where it is declared."""
    far = elsewhere(tensor([1.0], "far"))
    constant = helper.make_node("Constant", [], ["out"], value=far)
    sparse = helper.make_sparse_tensor(far, tensor([0], "at", np.int64), [4])
    function = helper.make_function("own", "F", ["a"], ["out"], [constant], [OPSET])
    own = [OPSET, helper.make_opsetid("own", 1)]
    loop = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), constant],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("out", TensorProto.FLOAT, [1]),
        ],
    )
    twice = helper.make_node("Loop", ["two", ""], ["each"], body=loop)
    found = {
        "a weight": plus("far", weights=[far]),
        "a constant": plus("out", constant),
        "a branch": conditional(branch(constant)),
        "a branch's weight": conditional(
            branch(helper.make_node("Identity", ["far"], ["out"]), weights=[far])
        ),
        "a branch in a branch": conditional(
            branch(
                helper.make_node(
                    "If",
                    ["yes"],
                    ["out"],
                    then_branch=branch(constant),
                    else_branch=branch(constant),
                )
            )
        ),
        "a loop": plus("each", twice, weights=[tensor(2, "two", np.int64)]),
        "a function": plus(
            "out",
            helper.make_node("F", ["dense"], ["out"], domain="own"),
            functions=[function],
            opset_imports=own,
        ),
        "a sparse weight": plus("far", sparse=[sparse]),
        "a sparse constant": plus(
            "out", helper.make_node("Constant", [], ["out"], sparse_value=sparse)
        ),
    }
    for name, location in (
        ("an absolute path", "/etc/passwd"),
        ("a path that leads out", "../../secret.bin"),
        ("the memory", "*/_ORT_MEM_ADDR_/*"),
    ):
        found[name] = plus("far", weights=[elsewhere(tensor([1.0], "far"), location)])
    return {name: each.SerializeToString() for name, each in found.items()}


def bombs():
    """Return models of a kilobyte that need gigabytes, by the operation that expands."""
    huge, one = tensor(HUGE, "huge", np.int64), tensor([[1.0]], "one")
    filled = helper.make_node("ConstantOfShape", ["huge"], ["out"])
    summed = helper.make_node("ReduceSum", ["filled"], ["out"], keepdims=0)
    inner = helper.make_node("ConstantOfShape", ["huge"], ["filled"])
    lie = TensorProto(name="lie", data_type=TensorProto.FLOAT, dims=HUGE.tolist(), raw_data=b"0000")
    sparse = helper.make_sparse_tensor(tensor([1.0], "far"), tensor([0], "at", np.int64), [10**10])
    doubled = [helper.make_node("ConstantOfShape", ["some"], ["c0"])]
    doubled += [
        helper.make_node("Concat", [f"c{n}", f"c{n}"], [f"c{n + 1}"], axis=0) for n in range(26)
    ]
    constant = helper.make_node("Constant", [], ["huge"], value=huge)
    function = helper.make_function("own", "F", ["a"], ["out"], [constant, inner, summed], [OPSET])
    own = [OPSET, helper.make_opsetid("own", 1)]
    nested = [
        helper.make_function(
            "own",
            f"F{n}",
            ["a"],
            ["b"],
            [
                helper.make_node(
                    f"F{n + 1}" if n < 30 else "Neg", ["a"], ["h"], domain="own" if n < 30 else ""
                ),
                helper.make_node(
                    f"F{n + 1}" if n < 30 else "Neg", ["h"], ["b"], domain="own" if n < 30 else ""
                ),
            ],
            own,
        )
        for n in range(31)
    ]
    bounds = [tensor(0, "from"), tensor(1e10, "to"), tensor(1, "step")]
    found = {
        "a filled constant": plus("out", filled, weights=[huge]),
        "a repeated constant": plus(
            "out", helper.make_node("Tile", ["one", "huge"], ["out"]), weights=[huge, one]
        ),
        "an expanded constant": plus(
            "out", helper.make_node("Expand", ["one", "huge"], ["out"]), weights=[huge, one]
        ),
        "a range": plus(
            "out", helper.make_node("Range", ["from", "to", "step"], ["out"]), weights=bounds
        ),
        "a constant that doubles": plus(
            "c26", *doubled, weights=[tensor([1000], "some", np.int64)]
        ),
        "a branch": conditional(branch(inner, summed, weights=[huge])),
        "a function": plus(
            "out",
            helper.make_node("F", ["dense"], ["out"], domain="own"),
            functions=[function],
            opset_imports=own,
        ),
        "functions in functions": plus(
            "out",
            helper.make_node("F0", ["dense"], ["out"], domain="own"),
            functions=nested,
            opset_imports=own,
        ),
        "a sparse weight": plus("far", sparse=[sparse]),
        "a weight that is not there": plus("lie", weights=[lie]),
        "an expanded result": plus(
            "out",
            helper.make_node("Expand", ["dense", "size"], ["out"]),
            weights=[tensor([*HUGE, CLASSES], "size", np.int64)],
        ),
    }
    return {name: each.SerializeToString() for name, each in found.items()}


def unusable():
    """Return models that cannot score 8×8 grayscale images, with a part of the expected message."""
    base, weights = dense()

    def shaped(given, made=("n", CLASSES), kind=TensorProto.UINT8, out=TensorProto.FLOAT):
        # The mean of all pixels, so that ONNX Runtime accepts any shape.
        nodes = [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
            helper.make_node("Cast", ["mean"], ["cast"], to=out),
            helper.make_node("Expand", ["cast", "size"], ["logits"]),
        ]
        size = tensor([1 if isinstance(each, str) else each for each in made], "size", np.int64)
        return model(
            nodes,
            [size],
            [helper.make_tensor_value_info("pixels", kind, list(given))],
            [helper.make_tensor_value_info("logits", out, list(made))],
        )

    two = helper.make_tensor_value_info("mask", TensorProto.UINT8, ["n", *SHAPE])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 64])
    counted = [
        *base[:2],
        helper.make_node("NonZero", ["rows"], ["places"]),
        helper.make_node("Cast", ["places"], ["logits"], to=TensorProto.FLOAT),
    ]
    any_classes = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "k"])
    free = model(counted, weights[:1], outputs=[any_classes])
    strange = model([helper.make_node("Frobnicate", ["pixels"], ["logits"])])
    reshaped = [base[0], helper.make_node("Reshape", ["floats", "one"], ["rows"]), base[2]]
    found = {
        "two inputs": (model(base, weights, [pixels, two]), "expected one input of uint8"),
        "two outputs": (model(base, weights, outputs=[rows, logits]), "expected one output of"),
        "floats": (shaped(["n", 8, 8, 1], kind=TensorProto.FLOAT), "expected one input of uint8"),
        "class numbers": (shaped(["n", 8, 8, 1], out=TensorProto.INT64), "expected logits, floats"),
        "free height": (shaped(["n", "h", 8, 1]), "numbers for height, width"),
        "free classes": (free, "numbers for height, width"),
        "channels first": (shaped(["n", 1, 8, 8]), "channels first"),
        "colours first": (shaped(["n", 3, 28, 28]), "channels first"),
        "flat images": (shaped(["n", 64]), "(n, height, width, channels)"),
        "a map of logits": (shaped(["n", 8, 8, 1], ["n", 8, 8, 3]), "(n, classes)"),
        "one class": (shaped(["n", 8, 8, 1], ["n", 1]), "one logit per class"),
        "too many classes": (shaped(["n", 8, 8, 1], ["n", 40_000]), "one logit per class"),
        "an image too large": (shaped(["n", 60_000, 60_000, 3]), "values per image"),
        "two batches": (shaped([2, 8, 8, 1], [3, 3]), "2 images per call and outputs 3"),
        "a batch inside": (
            model(reshaped, [tensor([1, 64], "one", np.int64), weights[1]]),
            "export it with a dynamic batch size",
        ),
        "one row for all": (shaped(["n", 8, 8, 1], ["n", 3]), "for 2 images"),
        "newer than ONNX Runtime": (model(ir_version=99), "Unsupported model IR version: 99, max"),
        "newer operators": (
            model(opset_imports=[helper.make_opsetid("", 99)]),
            "support for domain ai.onnx is till opset",
        ),
        "an unknown operator": (strange, "No Op registered for Frobnicate"),
    }
    return {name: (each.SerializeToString(), says) for name, (each, says) in found.items()}


assert onnx.__version__
