"""Hold out a test split if the source has none."""

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split

FRACTION = 1 / 6


def hold_out(split: Split, fraction: float = FRACTION) -> tuple[Split, Split]:
    """Split off the images whose digest is below a fixed threshold.

    Whether an image is held out depends on its pixels alone: an image that was held out once is
    held out for ever, whatever data arrive later, and copies of an image stay together. No rule
    with that property can also promise every class a test image: of n different images of a class,
    none is held out with probability (1 - fraction)^n.

    Args:
        split: All examples.
        fraction: Expected fraction to hold out, above 0 and below 1. The images that a smaller
            fraction holds out are among those of a larger one.

    Returns:
        Training and test split, each in the order of the rows; either may be empty.
    """
    # Digests are uniform, so the first 64 of their 128 bits are a uniform number.
    heads = np.frombuffer(split.image_digests.tobytes(), "<u8")[::2]
    test = heads < np.uint64(round(2**64 * fraction))
    return _take(split, ~test), _take(split, test)


def _take(split: Split, rows: NDArray[np.bool_]) -> Split:
    return Split(split.images[rows], split.labels[rows])
