"""Hold out a test split where the source has none."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split

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
