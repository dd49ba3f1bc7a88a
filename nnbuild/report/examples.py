"""The images on the page: some at random, and the worst errors, each inside the file as a small PNG."""

import base64
import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnbuild.errors import DataError

SAMPLES, WORST = 64, 12
_SEED = 0
_LARGEST = 64  # pixels on the longer side: a page of thumbnails stays small whatever the images are
_PIXELATED = 64
_BARS = 5
_UNDERFLOW = 100.0

Images = NDArray[np.uint8]


class Chance(NamedTuple):
    """One class and its probability; `kind` says whether it is the true one, the predicted one, or neither."""

    name: str
    probability: float
    kind: str


class Example(NamedTuple):
    """One test image and what the network made of it.

    Attributes:
        number: row in the test split.
        image: PNG as a data URI.
        label: the true class; None if it is not known.
        predicted: the class with the largest logit.
        confidence: its probability.
        loss: the negative log-likelihood of the true class in nats, as text.
        chances: the likeliest classes, the true one among them.
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
        """Whether the network is wrong."""
        return self.label is not None and self.label != self.predicted


def require_matching(images: Images, predictions: Any) -> None:
    """Refuse images that are not those of the predictions.

    Raises:
        DataError: they are too few, or of another form.
    """
    numbers = predictions["example_id"].to_numpy()
    needed = int(numbers.max(initial=-1)) + 1
    if images.ndim != 4 or images.shape[-1] not in {1, 3} or len(images) < needed:  # noqa: PLR2004
        raise DataError(
            f"images have shape {images.shape}, expected ({needed} or more, height, width, 1 or 3); "
            "pass the test images that the predictions are about"
        )


def samples(predictions: Any, images: Images, names: list[str]) -> list[Example]:
    """Some test images, the same of the same dataset whatever the network."""
    drawn = np.random.default_rng(_SEED).permutation(len(predictions))[:SAMPLES]
    return _examples(predictions, images, names, np.sort(drawn))


def worst(predictions: Any, images: Images, names: list[str]) -> list[Example]:
    """The errors with the greatest negative log-likelihood of the true class, the worst first."""
    known = predictions.filter(predictions["label"].is_valid())
    labels, predicted = (known[name].to_numpy() for name in ("label", "predicted"))
    of_label = np.zeros(len(known))
    for label in range(len(names)):
        of_class = labels == label
        if of_class.any():
            of_label[of_class] = known[f"prob_{label}"].to_numpy()[of_class]
    wrong = np.flatnonzero(labels != predicted)
    # Where the probability has underflowed, the surer error is the worse one.
    order = np.lexsort((-known["confidence"].to_numpy()[wrong], of_label[wrong]))
    return _examples(known, images, names, wrong[order][:WORST])


def _examples(
    predictions: Any, images: Images, names: list[str], rows: NDArray[np.int64]
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
    shown = order[:_BARS]
    return shown if label is None or label in shown else [*shown[:-1], label]


def _kind(each: int, label: int | None, predicted: int) -> str:
    if each == label:
        return "true"
    return "predicted" if each == predicted else "other"


def _loss(probability: float) -> str:
    return f"{-math.log(probability):.2f}" if probability > 0 else f"over {_UNDERFLOW:.0f}"


def png(image: Images) -> str:
    """An image as a data URI, made smaller if it is large.

    Args:
        image: uint8, shape (height, width, 1 or 3).
    """
    small = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def pixelated(images: Images) -> bool:
    """Whether the images are so small that one wants to see their pixels."""
    return bool(max(images.shape[1:3]) <= _PIXELATED)
