"""Test images of the report, random ones and the worst errors, embedded as small PNG files."""

import base64
import io
import math
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from nnbuild.errors import DataError

SAMPLES, WORST = 64, 12
_SEED = 0
_MAX_SIDE = 64  # pixels of the longer side of a thumbnail, so that the page stays small
_MAX_BARS = 5
_UNDERFLOW = 100.0  # nats; a float32 probability is 0 from there on
_GRAY_OR_RGB = {1, 3}

Images = NDArray[np.uint8]


class Chance(NamedTuple):
    """A class and its probability.

    Attributes:
        name: Name of the class.
        probability: Its probability.
        kind: `true`, `predicted` or `other` class.
    """

    name: str
    probability: float
    kind: str


class Example(NamedTuple):
    """A test image and its prediction.

    Attributes:
        number: Row in the test split.
        image: PNG as a data URI.
        label: True class; None if unknown.
        predicted: Predicted class.
        confidence: Probability of the predicted class.
        loss: Negative log-likelihood of the true class in nats, as text.
        chances: Most likely classes, including the true one.
    """

    number: int
    image: str
    label: str | None
    predicted: str
    confidence: float
    loss: str
    chances: list[Chance]

    @property
    def miss(self) -> bool:
        """Return whether the prediction is incorrect."""
        return self.label is not None and self.label != self.predicted


def require_matching(images: Images, predictions: pa.Table) -> None:
    """Refuse images that cannot be those of the predictions.

    Raises:
        DataError: There are too few images, or their shape is invalid.
    """
    numbers = predictions["example_id"].to_numpy()
    needed = int(numbers.max(initial=-1)) + 1
    valid = images.ndim == 4 and images.shape[-1] in _GRAY_OR_RGB
    if not valid or len(images) < needed:
        raise DataError(
            f"images have shape {images.shape}, expected ({needed} or more, height, width, "
            "1 or 3); "
            "pass the test images of the predictions"
        )


def samples(predictions: pa.Table, images: Images, names: list[str]) -> list[Example]:
    """Return random test images, the same for each network on the same dataset."""
    drawn = np.random.default_rng(_SEED).permutation(len(predictions))[:SAMPLES]
    return _examples(predictions, images, names, np.sort(drawn))


def worst(predictions: pa.Table, images: Images, names: list[str]) -> list[Example]:
    """Return the errors with the highest loss, in descending order."""
    known = predictions.filter(predictions["label"].is_valid())
    labels, predicted = (known[name].to_numpy() for name in ("label", "predicted"))
    likelihood = np.zeros(len(known))
    for label in range(len(names)):
        of_class = labels == label
        if of_class.any():
            likelihood[of_class] = known[f"prob_{label}"].to_numpy()[of_class]
    incorrect = np.flatnonzero(labels != predicted)
    # Among likelihoods that underflow to 0, the more confident error is the worse one.
    order = np.lexsort((-known["confidence"].to_numpy()[incorrect], likelihood[incorrect]))
    return _examples(known, images, names, incorrect[order][:WORST])


def _examples(
    predictions: pa.Table, images: Images, names: list[str], rows: NDArray[np.int64]
) -> list[Example]:
    return [_example(row, images, names) for row in predictions.take(rows).to_pylist()]


def _example(row: dict[str, Any], images: Images, names: list[str]) -> Example:
    label, predicted = row["label"], row["predicted"]
    probabilities = [float(row[f"prob_{each}"]) for each in range(len(names))]
    return Example(
        number=row["example_id"],
        image=png(images[row["example_id"]]),
        label=None if label is None else names[label],
        predicted=names[predicted],
        confidence=float(row["confidence"]),
        loss="" if label is None else _loss(probabilities[label]),
        chances=[
            Chance(names[each], probabilities[each], _kind(each, label, predicted))
            for each in _likeliest(probabilities, label)
        ],
    )


def _likeliest(probabilities: list[float], label: int | None) -> list[int]:
    order = sorted(range(len(probabilities)), key=lambda each: -probabilities[each])
    shown = order[:_MAX_BARS]
    return shown if label is None or label in shown else [*shown[:-1], label]


def _kind(each: int, label: int | None, predicted: int) -> str:
    if each == label:
        return "true"
    return "predicted" if each == predicted else "other"


def _loss(probability: float) -> str:
    return f"{-math.log(probability):.2f}" if probability > 0 else f"over {_UNDERFLOW:.0f}"


def png(image: Images) -> str:
    """Encode an image as a data URI of a PNG thumbnail.

    Args:
        image: uint8, shape (height, width, 1 or 3).
    """
    small = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def pixelated(images: Images) -> bool:
    """Return whether the images are so small that their pixels should be visible."""
    return bool(max(images.shape[1:3]) <= _MAX_SIDE)
