"""The splits of a dataset: their usual names, and a test split where the source has none."""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split

TRAIN, VALIDATION, TEST = "train", "validation", "test"
FRACTION = 1 / 6

_SYNONYMS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing"),
}
_BY_NAME = {name: split for split, names in _SYNONYMS.items() for name in names}
_WORDS = re.compile(r"[a-z]+")


def split_named(name: str) -> str | None:
    """Return the split that a folder is named after: `train` for `Training`, None for `cats`."""
    return _BY_NAME.get(name.lower())


def split_of_file(name: str) -> str | None:
    """Return the split that a file's name says: `validation` for `Val-00000-of-00001.parquet`.

    It is the first word of the name that names a split, as in `mnist_test.parquet`; a name that
    begins with the letters of `train` or `test` counts too, as in `trainset.parquet`.
    """
    words = _WORDS.findall(name.lower())
    if (split := next(filter(None, map(split_named, words)), None)) is not None:
        return split
    return next((split for split in (TRAIN, TEST) if name.lower().startswith(split)), None)


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
