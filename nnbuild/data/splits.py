"""Hold out a test split if the source has none."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split

FRACTION = 1 / 6


def hold_out(split: Split, fraction: float = FRACTION) -> tuple[Split, Split]:
    """Split off a fraction of every class, selected by the digests of the images.

    The selection depends on neither the order of the rows nor a seed, and copies of an image stay
    together.

    Args:
        split: All examples.
        fraction: Fraction of each class to hold out, above 0 and below 1.

    Returns:
        Training and test split, each in the order of the rows. A class with a single distinct
        image has no test images.
    """
    test = np.zeros(len(split), bool)
    digests = image_digests(split.images)
    for label in np.unique(split.labels):
        members = split.labels == label
        distinct = np.unique(digests[members])  # sorted
        count = min(max(1, round(len(distinct) * fraction)), len(distinct) - 1)
        test |= members & np.isin(digests, distinct[len(distinct) - count :])
    return _take(split, ~test), _take(split, test)


def image_digests(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a 64-bit digest of each image, equal for equal images.

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
