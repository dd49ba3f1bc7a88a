"""Assemble a dataset of uint8 pixels and labels from 0 out of arrays in the usual formats."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.config.names import TRAIN
from nnbuild.data import labels as label_forms
from nnbuild.data import pixel_scale
from nnbuild.data.dataset import Dataset, Split, hold_out
from nnbuild.data.preprocessing import Preprocessing, fit_images
from nnbuild.errors import DataError

_CHANNELS = (1, 3)
_MAX_NAMED = 5
_HELD_OUT = "test: a sixth of the images, by content"
_IMAGE_DIMENSIONS = 4  # n, height, width, channels


class Raw(NamedTuple):
    """Arrays as they were read, of any numeric type, with unchecked shapes.

    Attributes:
        train_images: Images, expected (n, height, width) or (n, height, width, channels).
        train_labels: Labels in a format of `nnbuild.data.labels.encode`.
        test_images: Test images; None if the source has no test split.
        test_labels: Test labels.
        validation_images: Validation images; None if the source has no validation split.
        validation_labels: Validation labels.
        kept: Columns that describe the images, by split; empty if none are kept.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[Any]
    test_images: NDArray[Any] | None = None
    test_labels: NDArray[Any] | None = None
    validation_images: NDArray[Any] | None = None
    validation_labels: NDArray[Any] | None = None
    kept: Mapping[str, pa.Table] = MappingProxyType({})

    def splits(self) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Return images and labels of each available split by name."""
        result: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for name, images, labels in (
            (TRAIN, self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
            ("validation", self.validation_images, self.validation_labels),
        ):
            if images is not None and labels is not None:
                result[name] = (images, np.asarray(labels))  # which may be mapped
        return result


def assemble(
    raw: Raw,
    *,
    name: str,
    source: str,
    where: object,
    class_names: Sequence[str] | None = None,
    pixel_max: float | None = None,
    pixel_scales: Mapping[str, str] | None = None,
    test_split: bool = True,
    part: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Dataset:
    """Assemble a dataset; without a test split, a sixth of the images is held out.

    Images have shape (n, height, width) or (n, height, width, channels), with 1 or 3 channels. Each
    array is scaled by its own type and content; see `nnbuild.data.pixel_scale`. Images with the
    label -1 are unlabelled and omitted.

    Args:
        raw: Arrays of the splits.
        name: Name of the dataset.
        source: Description of its origin, for the manifest.
        where: Path or address for error messages.
        class_names: Name of each class; by default the labels that occur, as text.
        pixel_max: Pixel value of white; None to infer it from type and content of each array.
        pixel_scales: Scale of each split, if its pixels were converted before.
        test_split: Whether to hold out a test split if there is none; otherwise all images are in
            both splits.
        part: Whether the arrays are a part of a dataset, which may have a single class, and a split
            without images.
        preprocessing: Settings by which images of different sizes are made equal; None to refuse
            them. Equal ones are left to `nnbuild.data.preprocessing.fit_dataset`.

    Raises:
        DataError: An array is invalid, or the arrays do not match.
    """
    arrays = {
        split: (with_channels(images, where), labels)
        for split, (images, labels) in raw.splits().items()
    }
    whites = {
        split: pixel_scale.white_of(images, f"{where}, {split} images", pixel_max)
        for split, (images, _) in arrays.items()
    }
    scales = {
        split: pixel_scale.description(images, whites[split])
        for split, (images, _) in arrays.items()
    }
    encoded = label_forms.encode(
        [labels for _, labels in arrays.values()], where, class_names, fewest=1 if part else 2
    )
    splits: dict[str, Split] = {}
    for (split, (images, _)), labels in zip(arrays.items(), encoded.splits, strict=True):
        pixels = pixel_scale.to_uint8(images, whites[split], where)
        labelled, note = _labelled(split, Split(pixels, labels, raw.kept.get(split)), where)
        source += note
        if labelled is not None:
            splits[split] = labelled
    if "test" not in splits and not test_split:
        splits["test"] = splits[TRAIN]
    held_out = "test" not in splits
    if held_out:
        splits[TRAIN], splits["test"] = (
            hold_out(splits[TRAIN])
            if part
            else _held_out(splits[TRAIN], encoded.class_names, where)
        )
        source = f"{source}; {_HELD_OUT}"
    if preprocessing is not None and len({each.images.shape[1:] for each in splits.values()}) > 1:
        splits = {
            name: replace(split, images=fit_images(split.images, preprocessing))
            for name, split in splits.items()
        }
    _require_one_size(splits, where)
    if not part:
        _require_known_classes(splits, encoded.class_names, where)
    return Dataset(
        name,
        splits[TRAIN],
        splits["test"],
        encoded.class_names,
        source,
        splits.get("validation"),
        dict(pixel_scales or scales),
        held_out,
    )


def _held_out(split: Split, class_names: Sequence[str], where: object) -> tuple[Split, Split]:
    """Hold out a test split, and require that every class can still be trained on."""
    train, test = hold_out(split)
    if not len(test):
        count = len(np.unique(split.image_digests))
        raise DataError(
            f"{where}: expected a test split, or enough images to hold out a sixth by their "
            f"content; none of its {count} different images is among that sixth: add images"
        )
    lost = np.setdiff1d(test.labels, train.labels)
    if len(lost):
        shown = ", ".join(class_names[label] for label in lost[:_MAX_NAMED])
        raise DataError(
            f"{where}: all images of {shown} are among the sixth that is held out for testing by "
            "content, expected some to train on; add images of it, or give a test split"
        )
    return train, test


def _labelled(split: str, examples: Split, where: object) -> tuple[Split | None, str]:
    """Return the images with a label, and a note about the omitted ones."""
    kind = "training" if split == TRAIN else split
    images, labels = examples.images, examples.labels
    if len(images) != len(labels):
        raise DataError(
            f"{where}: {len(images)} {kind} images, {len(labels)} labels; expected a label each"
        )
    known = labels != label_forms.NONE
    if known.all():
        return examples, ""
    if not known.any():
        if split == TRAIN:
            raise DataError(f"{where}: no training image has a label; expected labels from 0")
        return None, f"; {split} split omitted: none of its {len(labels)} images has a label"
    note = f"; {int((~known).sum())} {kind} images without a label omitted"
    return examples.select(known), note


def _require_one_size(splits: Mapping[str, Split], where: object) -> None:
    size = splits[TRAIN].images.shape[1:]
    for name, split in splits.items():
        if split.images.shape[1:] != size:
            sizes = f"{size} and {name} images of {split.images.shape[1:]}"
            raise DataError(
                f"{where}: training images of height, width, channels {sizes}; expected one size: "
                "set dataset.image_size and dataset.channels"
            )


def _require_known_classes(
    splits: Mapping[str, Split], class_names: Sequence[str], where: object
) -> None:
    """Refuse splits with labels that no training image has."""
    for name, split in splits.items():
        unknown = np.setdiff1d(split.labels, splits[TRAIN].labels)
        if len(unknown):
            shown = ", ".join(class_names[label] for label in unknown[:_MAX_NAMED])
            raise DataError(
                f"{where}: no training image has the label {shown} of the {name} split; "
                "expected the same labels in both"
            )


def as_pixels(
    images: Sequence[NDArray[Any]], where: object, pixel_max: float | None = None
) -> list[NDArray[np.uint8]]:
    """Convert images to uint8, shape (n, height, width, channels), each array with its own scale.

    Raises:
        DataError: An array has an invalid shape, no images, or values that are not pixels.
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
        DataError: The shape is not one of images, or there are no images.
    """
    shape = array.shape
    if array.ndim == _IMAGE_DIMENSIONS - 1:
        array = array[..., np.newaxis]
    valid = array.ndim == _IMAGE_DIMENSIONS and array.shape[-1] in _CHANNELS
    if valid and not len(array):
        raise DataError(f"{where}: no images in an array of shape {shape}; expected at least one")
    if not valid or 0 in array.shape:
        raise DataError(
            f"{where}: images of shape {shape}; expected (n, height, width) or "
            "(n, height, width, 1 or 3)"
        )
    return array


def slug(path: Path) -> str:
    """Return a dataset's name from its path, of lower-case letters, digits, dots and dashes."""
    resolved = path.resolve()
    stem = resolved.name if resolved.is_dir() else resolved.stem
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower())[:60].strip(".-") or "dataset"
