"""Check the logits contract: a linear head, one logit for each class, and a loss on logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import ContractError, raised
from nnbuild.logits.softmax import require_finite

_PROBE_IMAGES = 4
_OUTPUT_TYPES = ("float32", "float64")
_USE_DENSE = (
    "make the last layer Dense(classes) without an activation; softmax is applied at scoring"
)
_TAKE_OFF_SOFTMAX = (
    "make the last layer Dense(classes) without an activation (in keras.applications: "
    "include_top=False and a Dense layer, or classifier_activation=None); softmax is applied at "
    "scoring"
)
_USE_DENSE_FOR_DISTANCES = (
    "squared distances to centres, -|x - c|², have the same softmax as a Dense layer with the "
    "kernel 2c and the bias -|c|²; use that layer"
)
_DROP_NORMALISATION = (
    "it divides by a value that depends on the image; remove the normalisation, softmax is applied "
    "at scoring"
)
_ADVICE = {
    "Softmax": _TAKE_OFF_SOFTMAX,
    **dict.fromkeys(("Square", "SquaredDifference", "Pow"), _USE_DENSE_FOR_DISTANCES),
    **dict.fromkeys(
        ("RealDiv", "Div", "DivNoNan", "Xdivy", "Reciprocal", "Inv"), _DROP_NORMALISATION
    ),
    **dict.fromkeys(("Sqrt", "Rsqrt"), _DROP_NORMALISATION),
}


def check_model(model: Any, classes: int, image_shape: tuple[int, int, int] | None = None) -> None:
    """Check the output and the head of a model, and its loss if it is compiled.

    Args:
        model: Keras model of any kind.
        classes: Expected number of logits.
        image_shape: Height, width and channels of an image; the model's input shape if not given.

    Raises:
        ContractError: The model violates the contract; the message says how to fix it.
    """
    traced = _checked_output(model, classes, image_shape)
    _check_head(model, traced)
    _check_values(model, traced)
    if model.compiled:
        check_loss(model)


def check_output(model: Any, classes: int, image_shape: tuple[int, int, int] | None = None) -> None:
    """Check that a model has one input of images and one output of shape (n, classes).

    Args:
        model: Keras model.
        classes: Expected number of logits.
        image_shape: Expected height, width and channels; the model's own if not given.

    Raises:
        ContractError: The model is not built, or has another input or output.
    """
    _checked_output(model, classes, image_shape)


def check_head(model: Any, image_shape: tuple[int, int, int] | None = None) -> None:
    """Check in the graph of a model that its head is linear, without softmax or other activation.

    Args:
        model: Built Keras model.
        image_shape: Height, width and channels to trace it with; the model's own if not given.

    Raises:
        ContractError: The head is not linear; the message names the operation and its place.
    """
    _check_head(model, _traced(model, tuple(image_shape or model.inputs[0].shape[1:])))


def _checked_output(model: Any, classes: int, image_shape: tuple[int, int, int] | None) -> Any:
    """Check the input and output of a model, and return its traced function."""
    _check_input(model, image_shape)
    traced = _traced(model, image_shape or tuple(model.inputs[0].shape[1:]))
    output = traced.structured_outputs
    if not hasattr(output, "dtype") or not hasattr(output, "shape"):
        raise ContractError(
            f"model {model.name!r} returns {_described(output)}, expected one tensor of shape "
            f"(n, {classes}); return layers.Dense({classes})(x) itself"
        )
    if output.dtype.name not in _OUTPUT_TYPES:
        raise ContractError(
            f"model {model.name!r} outputs logits of {output.dtype.name}, expected float32, also "
            'with mixed precision; give the last layer dtype="float32"'
        )
    # A layer may have a static shape where the operations of its graph have none.
    shape = tuple(model.outputs[0].shape if getattr(model, "outputs", None) else output.shape)
    if shape != (None, classes):
        raise ContractError(
            f"model {model.name!r} has outputs of shape {shape}, expected (n, {classes}): "
            f"one logit for each of the {classes} classes; end it with Dense({classes})"
        )
    return traced


def _check_input(model: Any, image_shape: tuple[int, int, int] | None) -> None:
    if not model.built:
        raise ContractError(
            f"model {model.name!r} has no input shape; begin it with keras.Input(shape), or call "
            "it on one image before returning it"
        )
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise ContractError(
            f"model {model.name!r} has {len(inputs)} inputs, expected one of images"
        )
    shape = tuple(inputs[0].shape[1:]) if inputs else None
    if shape and image_shape and not _fits(shape, image_shape):
        raise ContractError(
            f"model {model.name!r} takes images of shape {shape}, but the dataset has "
            f"{image_shape}; build it from the argument input_shape"
        )


def _fits(shape: tuple[int | None, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        one in (None, other) for one, other in zip(shape, expected, strict=True)
    )


def _traced(model: Any, image_shape: tuple[int, ...]) -> Any:
    from nnbuild.logits.graph import traced  # here, since softmax needs no TensorFlow

    try:
        return traced(model, image_shape)
    except (Exception, SystemExit) as error:  # a user's own layers may raise anything
        raise ContractError(
            f"model {model.name!r} cannot take images of shape {image_shape}: {raised(error)}; "
            "try it on one image first"
        ) from error


def _described(output: Any) -> str:
    """Describe the output of a model that is not one tensor."""
    if isinstance(output, dict):
        return f"a dict with {', '.join(map(repr, output))}"
    if isinstance(output, (list, tuple)):
        return f"several outputs ({len(output)})" if len(output) != 1 else "a list of one output"
    return type(output).__name__


def _check_head(model: Any, traced: Any) -> None:
    from nnbuild.logits.graph import nonlinear_end

    end = nonlinear_end(traced)
    if end is not None:
        advice = _ADVICE.get(end.operation, _USE_DENSE)
        raise ContractError(
            f"model {model.name!r} ends in {end.operation} (at {end.place}), expected a linear "
            f"layer that outputs logits; {advice}"
        )


def _check_values(model: Any, traced: Any) -> None:
    """Refuse probabilities that the graph does not show, for example from a Python function."""
    images = traced.inputs[0]
    noise = np.random.default_rng(0).integers(0, 256, (_PROBE_IMAGES, *images.shape[1:]))
    try:
        logits = traced(noise.astype(images.dtype.as_numpy_dtype)).numpy()
    except (Exception, SystemExit) as error:  # a user's own layers may raise anything
        raise ContractError(
            f"model {model.name!r} cannot take images of shape {tuple(images.shape[1:])}: "
            f"{raised(error)}; try it on one image first"
        ) from error
    refuse_probabilities(logits)


def check_loss(model: Any) -> None:
    """Check that the loss of a model is a cross-entropy on logits.

    Raises:
        ContractError: It is another loss, or one with `from_logits=False`.
    """
    from nnbuild.runtime.tensorflow import keras

    losses = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
    loss = model.loss
    if isinstance(loss, losses) and loss.from_logits:
        return
    name = loss if isinstance(loss, str) else type(loss).__name__
    flag = f" with from_logits={loss.from_logits}" if isinstance(loss, losses) else ""
    raise ContractError(
        f"model {model.name!r} is compiled with {name}{flag}, expected "
        "SparseCategoricalCrossentropy or CategoricalCrossentropy with from_logits=True"
    )


def check_logits(
    logits: NDArray[Any],
    classes: int,
    first_row: int = 0,
    *,
    example_ids: Sequence[Any] | NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Check that an array contains logits: finite, and not probabilities.

    Args:
        logits: Array to check, float, shape (n, classes).
        classes: Number of classes.
        first_row: Number of the first row, for the message.
        example_ids: IDs of the rows, for the message in place of their numbers.

    Returns:
        The same array.

    Raises:
        ContractError: The shape is different, a logit is not finite, or the rows are
            probabilities.
    """
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ContractError(
            f"expected logits of shape (n, {classes}), got {logits.shape}; pass the model's "
            "output, not images"
        )
    require_finite(logits, first_row, example_ids=example_ids)
    refuse_probabilities(logits)
    return logits


def refuse_probabilities(logits: NDArray[Any]) -> None:
    """Refuse "logits" whose rows are all non-negative and sum to 1: the output of a softmax.

    A second softmax would give rows that sum to 1 and have the same argmax, but no confidence above
    e/(e + classes - 1); no later check would notice. Real logits practically never meet both
    conditions.

    Args:
        logits: Logits, float, shape (n, classes).

    Raises:
        ContractError: All rows are probabilities.
    """
    if len(logits) == 0:
        return
    wide = logits.astype(np.float64)
    tolerance = 1e-2 if logits.dtype.itemsize == 2 else 1e-4
    if (wide >= 0).all() and (np.abs(wide.sum(axis=1) - 1) < tolerance).all():
        raise ContractError(
            f"all {len(logits)} rows of logits are non-negative and sum to 1: they are "
            f"probabilities; {_USE_DENSE}"
        )
