"""From arrays in the forms that people keep images in, to a dataset: uint8 pixels and labels from 0."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Dataset, Split
from nnbuild.errors import DataError

MOST_CLASSES = 1000
_WHITE = 255
_ROWS = 4096  # converted at a time, so that float images need no second copy of themselves
_CHANNELS = (1, 3)


class Raw(NamedTuple):
    """Two splits as they were read: any numeric types, shapes not yet looked at.

    Attributes:
        train_images: should be of shape (n, height, width) or (n, height, width, channels).
        train_labels: should be of shape (n,).
        test_images: as the training images, another n.
        test_labels: likewise.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[Any]
    test_images: NDArray[Any]
    test_labels: NDArray[Any]


def assemble(
    raw: Raw, *, name: str, source: str, where: object, class_names: Sequence[str] | None = None
) -> Dataset:
    """A dataset from arrays.

    Images may have shape (n, height, width) or (n, height, width, channels), channels 1 or 3, and hold
    integers from 0 to 255, floats from 0 to 255, or, if no value of either split exceeds 1, floats from 0 to
    1, which are multiplied by 255; floats are rounded. Labels are integers from 0 without gaps, shape (n,) or
    (n, 1).

    Args:
        raw: the arrays.
        name: the dataset's name.
        source: where it came from, for the manifest.
        where: what an error message should name.
        class_names: one for each class; by default the labels themselves.

    Raises:
        DataError: the arrays are none of this, or disagree with one another.
    """
    train_images, test_images = as_pixels((raw.train_images, raw.test_images), where)
    train = Split(train_images, as_labels(raw.train_labels, where))
    test = Split(test_images, as_labels(raw.test_labels, where))
    for subset, split in (("training", train), ("test", test)):
        if len(split.images) != len(split.labels):
            raise DataError(
                f"{where}: {len(split.images)} {subset} images, {len(split.labels)} labels; expected as many"
            )
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = f"{train.images.shape[1:]} and test images of {test.images.shape[1:]}"
        raise DataError(
            f"{where}: training images of height, width, channels {sizes}; expected one size"
        )
    if class_names is None:
        class_names = _numbered(train, test, where)
    require_classes(class_names, max(int(train.labels.max()), int(test.labels.max())), where)
    return Dataset(name, train, test, tuple(class_names), source)


def as_pixels(images: Sequence[NDArray[Any]], where: object) -> list[NDArray[np.uint8]]:
    """Images as uint8, shape (n, height, width, channels); all the arrays are scaled alike.

    Raises:
        DataError: a wrong shape, no image, a value outside the range, or no numbers.
    """
    shaped = [_with_channels(array, where) for array in images]
    highest = max(_require_range(array, where) for array in shaped)
    return [_to_uint8(array, 1 if highest > 1 else _WHITE) for array in shaped]


def _with_channels(array: NDArray[Any], where: object) -> NDArray[Any]:
    shape = array.shape
    if len(shape) == 3:  # noqa: PLR2004
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in _CHANNELS or 0 in array.shape:  # noqa: PLR2004
        raise DataError(
            f"{where}: images of shape {shape}; expected (n, height, width) or (n, height, width, 1 or 3)"
        )
    return array


def _require_range(array: NDArray[Any], where: object) -> float:
    if array.dtype == np.uint8:
        return _WHITE  # also if all are 0 or 1: integers are taken as they are
    if array.dtype.kind not in "iuf":
        raise DataError(f"{where}: images of type {array.dtype}; expected integers or floats")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= _WHITE):  # a NaN fails this too
        raise DataError(
            f"{where}: pixels from {low} to {high}; expected [0, 255], or [0, 1] in floats"
        )
    return float(high) if array.dtype.kind == "f" else _WHITE


def _to_uint8(array: NDArray[Any], scale: int) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    pixels = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _ROWS):
        rows = array[start : start + _ROWS]
        pixels[start : start + _ROWS] = (
            np.rint(rows.astype(np.float64) * scale) if array.dtype.kind == "f" else rows
        )
    return pixels


def as_labels(labels: NDArray[Any], where: object) -> NDArray[np.int16]:
    """Labels as int16, shape (n,).

    Raises:
        DataError: no integers, another shape, negative, or beyond what 1,000 classes need.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:  # noqa: PLR2004
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            f"{where}: labels of shape {labels.shape}, type {labels.dtype}; expected integers of shape (n,)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"{where}: labels from {low} to {high}; expected 0 to at most {MOST_CLASSES - 1}"
        )
    return labels.astype(np.int16)


def _numbered(train: Split, test: Split, where: object) -> tuple[str, ...]:
    present = np.union1d(train.labels, test.labels)
    if gaps := sorted(set(range(int(present[-1]) + 1)) - set(present.tolist())):
        shown = ", ".join(map(str, gaps[:10]))
        raise DataError(
            f"{where}: labels up to {present[-1]} without {shown}; expected 0, 1, 2 and so on: renumber them"
        )
    return tuple(str(label) for label in present)


def require_classes(class_names: Sequence[str], highest: int, where: object) -> None:
    """Refuse a number of classes that cannot be trained on, or that the labels exceed.

    Raises:
        DataError: naming the numbers.
    """
    if not 2 <= len(class_names) <= MOST_CLASSES:  # noqa: PLR2004
        raise DataError(f"{where}: {len(class_names)} class(es); expected 2 to {MOST_CLASSES}")
    if unprintable := [name for name in class_names if not name.isprintable() or not name]:
        raise DataError(
            f"{where}: a class is called {unprintable[0]!r}; expected a name that can be printed"
        )
    if len(set(class_names)) != len(class_names):
        raise DataError(f"{where}: two classes have the same name; expected different names")
    if highest >= len(class_names):
        raise DataError(
            f"{where}: label {highest}, and {len(class_names)} classes; expected 0 to {len(class_names) - 1}"
        )


def slug(path: Path) -> str:
    """A dataset's name from its path: lower-case letters, digits, dots and dashes; never empty or `..`."""
    resolved = path.resolve()
    stem = resolved.name if resolved.is_dir() else resolved.stem
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower())[:60].strip(".-") or "dataset"
