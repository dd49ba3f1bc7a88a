"""Split the examples into training and validation, and shuffle each epoch, by the seed alone.

With a seed, Keras's own shuffling repeats the same order in every epoch. Here every epoch has its
own order, which does not depend on the epochs before, so that a fit can be resumed anywhere.
"""

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.schema import RunConfig
from nnbuild.data import pixels
from nnbuild.data.dataset import Split
from nnbuild.errors import ConfigError

_SPLIT, _ORDER = 0, 1  # separate streams of random numbers from one seed


def split_rows(
    examples: int, fraction: float, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw the validation examples.

    Args:
        examples: Number of examples.
        fraction: Fraction to hold out, between 0 and 1, exclusive.
        seed: Seed of the draw.

    Returns:
        Rows to train on and rows to validate on: int32 of shapes (n,) and (m,), both in ascending
        order.

    Raises:
        ConfigError: One of the two would be empty.
    """
    held_out = round(examples * fraction)
    if not 0 < held_out < examples:
        raise ConfigError(
            f"validation_fraction {fraction} of {examples} examples leaves {examples - held_out} "
            f"to train on and {held_out} to validate on; give a fraction that leaves some of both"
        )
    drawn = np.random.default_rng([_SPLIT, seed]).permutation(examples).astype(np.int32)
    return np.sort(drawn[held_out:]), np.sort(drawn[:held_out])


def training_rows(train: int, validation: int, config: RunConfig) -> NDArray[np.int32]:
    """Return the rows to train on: all of them if the dataset has a validation split of its own.

    Args:
        train: Number of training examples.
        validation: Number of examples of the validation split; 0 if there is none.
        config: Resolved configuration, with the fraction to hold out otherwise, and the seed.

    Returns:
        int32 numbers of the training examples, shape (n,), in ascending order.

    Raises:
        ConfigError: Nothing would be left to train or validate on.
    """
    if validation:
        return np.arange(train, dtype=np.int32)
    return split_rows(train, float(config.training.validation_fraction or 0), config.seed)[0]


def validation_split(
    train: Split, validation: Split | None, config: RunConfig
) -> tuple[NDArray[np.int32], Split]:
    """Return the rows to train on and the examples to validate on.

    Args:
        train: All training examples.
        validation: Validation split of the dataset; None to draw one from the training examples.
        config: Resolved configuration, with the fraction to draw, and the seed.

    Returns:
        int32 numbers of the training examples, shape (n,), and the validation examples.

    Raises:
        ConfigError: Nothing would be left to train or validate on.
    """
    rows = training_rows(len(train), 0 if validation is None else len(validation), config)
    if validation is not None:
        return rows, validation
    held_out = np.setdiff1d(np.arange(len(train), dtype=np.int32), rows, assume_unique=True)
    return rows, Split(pixels.select(train.images, held_out), train.labels[held_out])


def epoch_order(rows: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int32]:
    """Shuffle the training examples for an epoch.

    Args:
        rows: int32 numbers of the training examples, shape (n,).
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        The same rows in another order.
    """
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(rows)
