"""A test split where the source has none: the same images in it whatever the order of the files."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.arrays import Raw, as_labels, as_pixels, assemble
from nnbuild.data.dataset import Dataset, Split
from nnbuild.errors import DataError

FRACTION = 1 / 6


def hold_out(split: Split, fraction: float = FRACTION) -> tuple[Split, Split]:
    """Split off a share of every class, chosen by the images' digests alone.

    The choice depends on neither the order of the rows nor a seed, and copies of one image stay together.

    Args:
        split: all the examples.
        fraction: the share of each class that is held out, above 0 and below 1.

    Returns:
        Training and test split, each in the order of the rows. A class with a single image has none to test.
    """
    held = np.zeros(len(split), bool)
    digests = image_digests(split.images)
    for label in np.unique(split.labels):
        members = split.labels == label
        distinct = np.unique(digests[members])  # sorted
        count = min(max(1, round(len(distinct) * fraction)), len(distinct) - 1)
        held |= members & np.isin(digests, distinct[len(distinct) - count :])
    return _take(split, ~held), _take(split, held)


def assemble_held_out(
    images: NDArray[Any],
    labels: NDArray[Any],
    *,
    name: str,
    source: str,
    where: object,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A dataset from a single split, a sixth of which becomes the test split; `source` says so.

    Args:
        images: shape (n, height, width) or (n, height, width, channels), as `nnbuild.data.arrays.assemble` takes them.
        labels: shape (n,), likewise.
        name: of the dataset.
        source: where it was read.
        where: for messages.
        class_names: one for each class; the labels as text if not given.

    Raises:
        DataError: as `nnbuild.data.arrays.assemble`, or nothing can be held out.
    """
    (pixels,) = as_pixels((images,), where)
    train, test = hold_out(Split(pixels, as_labels(labels, where)))
    if not len(test):
        raise DataError(
            f"{where}: no class has two different images; expected enough to hold some out for testing"
        )
    raw = Raw(train.images, train.labels, test.images, test.labels)
    source = f"{source}; test: a sixth of each class, by content"
    return assemble(raw, name=name, source=source, where=where, class_names=class_names)


def image_digests(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A number for each image: equal for equal images, and for others by accident (2^-64 for a pair).

    Args:
        images: uint8, shape (n, height, width, channels).

    Returns:
        uint64, shape (n,).
    """
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    hashes = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(hashes, "<u8")


def _take(split: Split, rows: NDArray[np.bool_]) -> Split:
    return Split(split.images[rows], split.labels[rows])
