"""Who is trained on, who is validated on, and in what order: all of it from the seed alone.

Keras's own shuffling repeats one order at each epoch once a seed is set; here every epoch has an order of
its own, and any epoch's order can be told without going through the ones before.
"""

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import ConfigError

_SPLIT, _ORDER = 0, 1  # separate streams of random numbers from one seed


def split_rows(
    examples: int, fraction: float, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw the validation examples.

    Args:
        examples: how many there are.
        fraction: share to hold out, more than 0 and less than 1.
        seed: of the draw.

    Returns:
        Rows to train on and rows to validate on: int32, shapes (n,) and (m,), each in ascending order, together all.

    Raises:
        ConfigError: one of the two would be empty.
    """
    held_out = round(examples * fraction)
    if not 0 < held_out < examples:
        raise ConfigError(
            f"validation_fraction {fraction} of {examples} examples leaves {examples - held_out} to train on and "
            f"{held_out} to validate on; give a fraction that leaves some of both"
        )
    drawn = np.random.default_rng([_SPLIT, seed]).permutation(examples).astype(np.int32)
    return np.sort(drawn[held_out:]), np.sort(drawn[:held_out])


def epoch_order(rows: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int32]:
    """The order in which an epoch goes through the training examples.

    Args:
        rows: int32, shape (n,), the rows to train on.
        seed: of the run.
        epoch: from 0.

    Returns:
        int32, shape (n,), the same rows in another order.
    """
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(rows)
