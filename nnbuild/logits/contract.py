"""The logits contract of a model: a linear head with one logit for each class, and a loss that knows it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import ContractError, raised
from nnbuild.logits.softmax import require_finite

_PROBE = 4  # images
_WIDE = ("float32", "float64")
_KERNEL = "make the last layer Dense(classes) without an activation; softmax is applied at scoring"
_DISTANCES = (
    "squared distances to centres, -|x - c|², have the softmax of a Dense layer with the kernel 2c and the "
    "bias -|c|²; end in one"
)
_NORMALISER = (
    "it divides by something that depends on the image; leave out the normalisation, softmax is applied at "
    "scoring"
)
_ADVICE = {
    **dict.fromkeys(("Square", "SquaredDifference", "Pow"), _DISTANCES),
    **dict.fromkeys(("RealDiv", "Div", "DivNoNan", "Xdivy", "Reciprocal", "Inv"), _NORMALISER),
    **dict.fromkeys(("Sqrt", "Rsqrt"), _NORMALISER),
}


def check_model(model: Any, classes: int, image_shape: tuple[int, int, int] | None = None) -> None:
    """Hold a model to the contract: its output, its head, and, once it is compiled, its loss.

    Args:
        model: a Keras model of any kind.
        classes: how many logits are expected.
        image_shape: height, width and channels; the model's own input shape if not given.

    Raises:
        ContractError: saying what was found, what was expected and how to mend it.
    """
    traced = _checked_output(model, classes, image_shape)
    _check_head(model, traced)
    _check_values(model, traced)
    if model.compiled:
        check_loss(model)


def check_output(model: Any, classes: int, image_shape: tuple[int, int, int] | None = None) -> None:
    """One input of images, one output of shape (n, classes).

    Args:
        model: a Keras model.
        classes: how many logits it has to give.
        image_shape: (height, width, channels) that it has to take; whatever it takes if not given.

    Raises:
        ContractError: the model is not built, or has another input or output.
    """
    _checked_output(model, classes, image_shape)


def check_head(model: Any, image_shape: tuple[int, int, int] | None = None) -> None:
    """The head is linear, found from the graph: no softmax, sigmoid or other activation, wherever it hides.

    Args:
        model: a Keras model that is built.
        image_shape: (height, width, channels) to trace it with; the model's own if not given.

    Raises:
        ContractError: naming the operation and its layer.
    """
    _check_head(model, _traced(model, tuple(image_shape or model.inputs[0].shape[1:])))


def _checked_output(model: Any, classes: int, image_shape: tuple[int, int, int] | None) -> Any:
    """Check the input and the output of a model, and return the traced function that they were read from."""
    _check_input(model, image_shape)
    traced = _traced(model, image_shape or tuple(model.inputs[0].shape[1:]))
    output = traced.structured_outputs
    if not hasattr(output, "dtype") or not hasattr(output, "shape"):
        raise ContractError(
            f"model {model.name!r} returns {_described(output)}, expected one tensor of shape (n, {classes}); "
            f"return layers.Dense({classes})(x) itself"
        )
    if output.dtype.name not in _WIDE:
        raise ContractError(
            f"model {model.name!r} gives logits of {output.dtype.name}, expected float32 whatever the other "
            'layers compute in; give the last layer dtype="float32"'
        )
    # A layer may know its shape where the operations of its graph do not.
    shape = tuple(model.outputs[0].shape if getattr(model, "outputs", None) else output.shape)
    if shape != (None, classes):
        raise ContractError(
            f"model {model.name!r} gives outputs of shape {shape}, expected (n, {classes}): "
            f"one logit for each of the {classes} classes; end it in Dense({classes})"
        )
    return traced


def _check_input(model: Any, image_shape: tuple[int, int, int] | None) -> None:
    if not model.built:
        raise ContractError(
            f"model {model.name!r} has no input shape; begin it with keras.Input(shape), or call it on "
            "one image before it is returned"
        )
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise ContractError(
            f"model {model.name!r} has {len(inputs)} inputs, expected one of images"
        )
    given = tuple(inputs[0].shape[1:]) if inputs else None
    if given and image_shape and not _fits(given, image_shape):
        raise ContractError(
            f"model {model.name!r} takes images of shape {given}, the dataset has {image_shape}; "
            "build it from the input_shape that it is given"
        )


def _fits(given: tuple[int | None, ...], wanted: tuple[int, ...]) -> bool:
    return len(given) == len(wanted) and all(
        one in (None, other) for one, other in zip(given, wanted, strict=True)
    )


def _traced(model: Any, image_shape: tuple[int, ...]) -> Any:
    from nnbuild.logits.graph import traced  # softmax alone needs no TensorFlow

    try:
        return traced(model, image_shape)
    except (Exception, SystemExit) as error:  # a user's own layers may raise anything
        raise ContractError(
            f"model {model.name!r} cannot take images of shape {image_shape}: {raised(error)}; "
            "try it on one image first"
        ) from error


def _described(output: Any) -> str:
    """What a model returns that is not one tensor."""
    if isinstance(output, dict):
        return f"a dict with {', '.join(map(repr, output))}"
    if isinstance(output, (list, tuple)):
        return f"several outputs ({len(output)})" if len(output) != 1 else "a list of one output"
    return type(output).__name__


def _check_head(model: Any, traced: Any) -> None:
    from nnbuild.logits.graph import nonlinear_end

    found = nonlinear_end(traced)
    if found is not None:
        advice = _ADVICE.get(found.operation, _KERNEL)
        raise ContractError(
            f"model {model.name!r} ends in {found.operation} (at {found.place}), expected a linear layer that gives "
            f"logits; {advice}"
        )


def _check_values(model: Any, traced: Any) -> None:
    """Refuse probabilities that come from where no graph shows it, from a Python function for example."""
    images = traced.inputs[0]
    noise = np.random.default_rng(0).integers(0, 256, (_PROBE, *images.shape[1:]))
    try:
        found = traced(noise.astype(images.dtype.as_numpy_dtype)).numpy()
    except (Exception, SystemExit) as error:  # a user's own layers may raise anything
        raise ContractError(
            f"model {model.name!r} cannot take images of shape {tuple(images.shape[1:])}: {raised(error)}; "
            "try it on one image first"
        ) from error
    refuse_probabilities(found)


def check_loss(model: Any) -> None:
    """The loss is a cross-entropy on logits.

    Raises:
        ContractError: it is another loss, or one with `from_logits=False`.
    """
    from nnbuild.runtime.tensorflow import keras

    losses = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
    loss = model.loss
    if isinstance(loss, losses) and loss.from_logits:
        return
    given = loss if isinstance(loss, str) else type(loss).__name__
    flag = f" with from_logits={loss.from_logits}" if isinstance(loss, losses) else ""
    raise ContractError(
        f"model {model.name!r} is compiled with {given}{flag}, expected SparseCategoricalCrossentropy or "
        "CategoricalCrossentropy with from_logits=True"
    )


def check_logits(logits: NDArray[Any], classes: int, first_row: int = 0) -> NDArray[Any]:
    """Hold an array to the contract.

    Args:
        logits: expected to be float, shape (n, classes), finite.
        classes: how many there are.
        first_row: number of the first row, for the message.

    Returns:
        The same array.

    Raises:
        ContractError: the shape is another, a logit is not finite, or the rows are probabilities.
    """
    if logits.ndim != 2 or logits.shape[1] != classes:  # noqa: PLR2004
        raise ContractError(
            f"expected logits of shape (n, {classes}), got {logits.shape}; pass the model's output, not images"
        )
    require_finite(logits, first_row)
    refuse_probabilities(logits)
    return logits


def refuse_probabilities(logits: NDArray[Any]) -> None:
    """Refuse "logits" whose rows are all non-negative and sum to 1: a softmax has been there already.

    A second softmax would give rows that sum to 1 and the right argmax, and no confidence above e/(e + classes - 1);
    no later check would notice. Real logits pass: a single row meets both conditions by chance about never.

    Args:
        logits: float, shape (n, classes).

    Raises:
        ContractError: every row looks like probabilities.
    """
    if len(logits) == 0:
        return
    wide = logits.astype(np.float64)
    tolerance = 1e-2 if logits.dtype.itemsize == 2 else 1e-4  # noqa: PLR2004  (half precision)
    if (wide >= 0).all() and (np.abs(wide.sum(axis=1) - 1) < tolerance).all():
        raise ContractError(
            f"all {len(logits)} rows of logits are non-negative and sum to 1: they are probabilities; {_KERNEL}"
        )
