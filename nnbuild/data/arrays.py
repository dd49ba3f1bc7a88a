"""From arrays in the forms that people keep images in, to a dataset of uint8 pixels and labels from 0."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.data import labels as label_forms
from nnbuild.data import pixel_scale
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.splits import TEST, TRAIN, VALIDATION, hold_out, split_named
from nnbuild.errors import DataError, suggestion

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


_IMAGES = frozenset({"x", "image", "images", "img", "imgs"})
_LABELS = frozenset({"y", "label", "labels", "target", "targets"})
_UNNAMED = "arr_0"  # what NumPy calls an array that was saved without a name
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LAYOUTS = "x_train and y_train, train_images and train_labels, or images and labels"


class Role(NamedTuple):
    """What an array holds.

    Attributes:
        group: Other words of its name, such as `k49`: the arrays of one dataset share them.
        split: `train`, `validation` or `test`; None if the name says none.
        kind: `images` or `labels`.
    """

    group: str
    split: str | None
    kind: str


def role_of(name: str) -> Role | None:
    """Return what an array holds by its name: `x_train`, `val_labels`, `k49-test-imgs`; or None."""
    words = _WORDS.findall(name)
    splits = [split for word in words if (split := split_named(word)) is not None]
    kinds = [
        kind
        for word in words
        for kind, known in (("images", _IMAGES), ("labels", _LABELS))
        if word.lower() in known
    ]
    if len(splits) > 1 or len(kinds) != 1:
        return None
    known = _IMAGES | _LABELS
    others = [word for word in words if word.lower() not in known and split_named(word) is None]
    return Role("-".join(others).lower(), splits[0] if splits else None, kinds[0])


def find_arrays(
    names: Iterable[str],
    where: object,
    keys: Mapping[str, str] | None = None,
    *,
    grouped: bool = False,
) -> dict[tuple[str, str], str]:
    """Find the arrays of a dataset by their names.

    Args:
        names: Of all arrays that there are.
        where: What a message should name.
        keys: Names that the user gave, by `x_train`, `y_train` and so on.
        grouped: Whether names may have other words, which then have to be the same for all.

    Returns:
        Name of each array by split (`train`, `validation`, `test`) and kind (`images`, `labels`).

    Raises:
        DataError: There are no training images and labels, two arrays for one purpose, images
            without labels, or no array of a name that the user gave.
    """
    names = sorted(names)
    found = _by_role(names, where, grouped=grouped)
    for key, name in (keys or {}).items():
        if name not in names:
            raise DataError(f"{where}: no array {name!r}; {suggestion(name, names)}")
        if (role := role_of(key)) is not None:
            found[role.split or TRAIN, role.kind] = name
    if {split for split, _ in found} == {""}:
        found = {(TRAIN, kind): name for (_, kind), name in found.items()}
    if missing := [kind for kind in ("images", "labels") if (TRAIN, kind) not in found]:
        held = ", ".join(names[:10]) or "nothing"
        raise DataError(
            f"{where}: lacks training {' and '.join(missing)} (it holds {held}); "
            f"expected {_LAYOUTS}, or their names in dataset.keys"
        )
    for split in (VALIDATION, TEST):
        kinds = [kind for kind in ("images", "labels") if (split, kind) in found]
        if len(kinds) == 1:
            other = "labels" if kinds[0] == "images" else "images"
            raise DataError(
                f"{where}: {found[split, kinds[0]]} has no {other}; "
                "add them, or give their name in dataset.keys"
            )
    return {role: name for role, name in found.items() if role[0]}


def _by_role(names: list[str], where: object, *, grouped: bool) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    groups: dict[str, str] = {}
    for name in names:
        role = role_of(name)
        if role is None or (role.group and not grouped):
            continue
        groups.setdefault(role.group, name)
        place = (role.split or "", role.kind)
        if place in found or len(groups) > 1:
            other = found.get(place) or next(iter(groups.values()))
            raise DataError(
                f"{where}: {other} and {name} could both be the {role.kind}; "
                "leave one out, or name the arrays in dataset.keys"
            )
        found[place] = name
    return found


def scored_array(names: Iterable[str], where: object) -> str:
    """Choose the array of images to score: `images`, those of the test split, or the only unnamed array.

    Raises:
        DataError: There is none of these.
    """
    names = sorted(names)
    roles = {
        (role.split, role.kind): name
        for name in names
        if (role := role_of(name)) and not role.group
    }
    for split in (None, TEST):
        if (split, "images") in roles:
            return roles[split, "images"]
    if names == [_UNNAMED]:
        return _UNNAMED
    held = ", ".join(names[:10]) or "nothing"
    raise DataError(f"{where}: lacks images or x_test (it holds {held}); expected one of these")
