"""From arrays in the forms that people keep images in, to a dataset of uint8 pixels and labels from 0."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.names import TRAIN
from nnbuild.data import labels as label_forms
from nnbuild.data import pixel_scale
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.splits import hold_out
from nnbuild.errors import DataError

_CHANNELS = (1, 3)
_MOST_NAMED = 5
_HELD_OUT = "test: a sixth of each class, by content"


class Raw(NamedTuple):
    """Splits as they were read: any numeric types, shapes not yet checked.

    Attributes:
        train_images: Should be of shape (n, height, width) or (n, height, width, channels).
        train_labels: See `nnbuild.data.labels.encode`.
        test_images: The same for another n; None if the source has no test split.
        test_labels: The same.
        validation_images: The same; None if the source has no validation split.
        validation_labels: The same.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[Any]
    test_images: NDArray[Any] | None = None
    test_labels: NDArray[Any] | None = None
    validation_images: NDArray[Any] | None = None
    validation_labels: NDArray[Any] | None = None

    def splits(self) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Return images and labels of the splits that the source has, by their names."""
        found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for name, images, labels in (
            (TRAIN, self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
            ("validation", self.validation_images, self.validation_labels),
        ):
            if images is not None and labels is not None:
                found[name] = (images, labels)
        return found


def assemble(
    raw: Raw,
    *,
    name: str,
    source: str,
    where: object,
    class_names: Sequence[str] | None = None,
    pixel_max: float | None = None,
    pixel_scales: Mapping[str, str] | None = None,
) -> Dataset:
    """Make a dataset from arrays; without a test split, a sixth of each class is held out.

    Images have shape (n, height, width) or (n, height, width, channels), channels 1 or 3. Each array
    is scaled by its own type and content, see `nnbuild.data.pixel_scale`. Images labelled -1 have
    no label and are left out.

    Args:
        raw: The arrays.
        name: The dataset's name.
        source: Where it came from, for the manifest.
        where: What an error message should name.
        class_names: One for each class; by default the labels that occur, as text.
        pixel_max: The value that is white; by default type and content of each array say it.
        pixel_scales: How pixels of each split were scaled, if that happened before.

    Raises:
        DataError: The arrays are none of this, or disagree with one another.
    """
    given = {
        split: (with_channels(images, where), labels)
        for split, (images, labels) in raw.splits().items()
    }
    whites = {
        split: pixel_scale.white_of(images, f"{where}, {split} images", pixel_max)
        for split, (images, _) in given.items()
    }
    scales = {
        split: pixel_scale.description(images, whites[split])
        for split, (images, _) in given.items()
    }
    encoded = label_forms.encode([labels for _, labels in given.values()], where, class_names)
    splits: dict[str, Split] = {}
    for (split, (images, _)), labels in zip(given.items(), encoded.splits, strict=True):
        pixels = pixel_scale.to_uint8(images, whites[split], where)
        made, note = _labelled(split, pixels, labels, where)
        source += note
        if made is not None:
            splits[split] = made
    if "test" not in splits:
        splits[TRAIN], splits["test"] = hold_out(splits[TRAIN])
        source = f"{source}; {_HELD_OUT}"
        if not len(splits["test"]):
            raise DataError(
                f"{where}: no class has two different images; expected enough of each label to hold "
                "some out for testing"
            )
    _require_one_size(splits, where)
    _require_known_classes(splits, encoded.class_names, where)
    return Dataset(
        name,
        splits[TRAIN],
        splits["test"],
        encoded.class_names,
        source,
        splits.get("validation"),
        dict(pixel_scales or scales),
    )


def _labelled(
    split: str, images: NDArray[np.uint8], labels: NDArray[np.int16], where: object
) -> tuple[Split | None, str]:
    """Return the images that have a label, and a note on those that were left out."""
    kind = "training" if split == TRAIN else split
    if len(images) != len(labels):
        raise DataError(
            f"{where}: {len(images)} {kind} images, {len(labels)} labels; expected as many"
        )
    known = labels != label_forms.NONE
    if known.all():
        return Split(images, labels), ""
    if not known.any():
        if split == TRAIN:
            raise DataError(f"{where}: no training image has a label; expected labels from 0")
        return None, f"; {split} split left out: none of its {len(labels)} images has a label"
    note = f"; {int((~known).sum())} {kind} images without a label left out"
    return Split(images[known], labels[known]), note


def _require_one_size(splits: Mapping[str, Split], where: object) -> None:
    size = splits[TRAIN].images.shape[1:]
    for name, split in splits.items():
        if split.images.shape[1:] != size:
            sizes = f"{size} and {name} images of {split.images.shape[1:]}"
            raise DataError(
                f"{where}: training images of height, width, channels {sizes}; expected one size"
            )


def _require_known_classes(
    splits: Mapping[str, Split], class_names: Sequence[str], where: object
) -> None:
    """Refuse labels that no training image has: those of the two splits do not fit together."""
    for name, split in splits.items():
        unknown = np.setdiff1d(split.labels, splits[TRAIN].labels)
        if len(unknown):
            shown = ", ".join(class_names[label] for label in unknown[:_MOST_NAMED])
            raise DataError(
                f"{where}: label {shown} of the {name} split is on no training image; "
                "expected the same labels in both"
            )


def as_pixels(
    images: Sequence[NDArray[Any]], where: object, pixel_max: float | None = None
) -> list[NDArray[np.uint8]]:
    """Return images as uint8, shape (n, height, width, channels); each array is scaled by itself.

    Raises:
        DataError: A wrong shape, no image, a value outside the range, or no numbers.
    """
    shaped = [with_channels(array, where) for array in images]
    whites = [pixel_scale.white_of(array, where, pixel_max) for array in shaped]
    return [
        pixel_scale.to_uint8(array, white, where)
        for array, white in zip(shaped, whites, strict=True)
    ]


def with_channels(array: NDArray[Any], where: object) -> NDArray[Any]:
    """Return images as an array of shape (n, height, width, channels).

    Raises:
        DataError: A shape that images do not have, or no image.
    """
    shape = array.shape
    if len(shape) == 3:  # noqa: PLR2004
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in _CHANNELS or 0 in array.shape:  # noqa: PLR2004
        raise DataError(
            f"{where}: images of shape {shape}; expected (n, height, width) or (n, height, width, 1 or 3)"
        )
    return array


def slug(path: Path) -> str:
    """Return a dataset's name from its path: lower-case letters, digits, dots and dashes; never empty or `..`."""
    resolved = path.resolve()
    stem = resolved.name if resolved.is_dir() else resolved.stem
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower())[:60].strip(".-") or "dataset"
